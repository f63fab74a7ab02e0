"""A run in other forms: LiteRT, ONNX, SavedModel; each is compared with the original before it is kept."""
