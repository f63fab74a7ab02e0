"""A folder or file of captioned pictures becomes records, words, pixels and cached features.

In: data sets in any form, picture files, vocabularies. Out: `CaptionedImage` records, word ids, (H, W,
3) pixels, feature arrays from the cache; `synthetic` draws a set of its own. Imports `system`, `config`
and `errors`; loads no TensorFlow.
"""
