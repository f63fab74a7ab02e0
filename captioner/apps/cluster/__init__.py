"""One job on many machines: `--engine ray`, and URLs of object stores in the place of paths.

In: pictures, a run or an encoder; or URLs. Out: the files that one machine would write, in the same places.
Imports `inference`, `runs`, `models`, `data` and `system`; Ray and fsspec are loaded inside functions.
"""
