"""The run folder: configuration, vocabulary, encoder, best weights, history; and where runs are found.

In: what a training leaves. Out: the same, checked, for whoever captions or goes on. Imports `models`
inside functions, `data`, `config` and `system`; loads TensorFlow only to rebuild networks.
"""
