"""The version of captioner, kept by itself: reading it imports nothing else."""

__version__ = "0.1.0"
