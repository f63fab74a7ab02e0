"""Records, histories and attention become figures: matplotlib, SVG, HTML for notebooks.

In: records, the history of a run, captions with attention. Out: PNG files, SVG and HTML text. Imports
`data` and `system`; `plots` and `fonts` load matplotlib, none TensorFlow.
"""
