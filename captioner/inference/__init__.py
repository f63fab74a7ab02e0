"""Pictures become captions: two captioners (TensorFlow and compiled), the search, its options, its
results.

In: a run folder and pictures. Out: `Caption` objects. Imports `runs`, `models` and `data`; only
`captioner` and `beam_search` load TensorFlow.
"""
