"""The drawn data set: scenes of colored shapes, and captions that describe them in several languages."""
