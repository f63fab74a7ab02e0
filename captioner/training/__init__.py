"""From a configuration and captioned pictures to a finished run: batches, losses, optimizer, step, loop,
checkpoints.

In: a `Config`, a data set. Out: a run folder. Imports `evaluation` (to judge each epoch), `inference`,
`runs`, `visualization`, `models` and `data`; loads TensorFlow.
"""
