"""Files that are whole or absent, manifests, the console, the hardware, the share of a job that a machine
takes.

In: paths, bytes, numbers. Out: the same, safely stored, shown or counted. Knows nothing of pictures or
captions. Imports only `errors`; loads no TensorFlow.
"""
