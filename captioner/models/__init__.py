"""The networks: an encoder that turns a picture into a grid of features, a decoder that writes from it.

In: pixels, word ids, weights. Out: grids (B, P, C), logits (B, R, T, V), and features of whole data
sets in the cache. Imports `data`, `config` and `system`; loads TensorFlow.
"""
