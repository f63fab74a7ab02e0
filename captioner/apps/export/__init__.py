"""A run in other forms: LiteRT, ONNX, SavedModel; each is compared with the original before it is kept.

In: a run folder. Out: a folder with the form, and export.json, which says what was compared. Imports
`inference`, `runs`, `models`, `data` and `system`; all but its comparison loads TensorFlow.
"""
