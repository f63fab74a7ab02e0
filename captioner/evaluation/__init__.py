"""Captions become scores: metrics, what chance would score, error analysis, the HTML report.

In: a run and a data set, or captions and references. Out: numbers, `scores.json`, `report.html`.
Imports `inference`, `runs`, `visualization`, `models` and `data`; only `evaluate` loads TensorFlow.
"""
