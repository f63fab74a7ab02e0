"""The command line: one file a command, with its arguments, its help and what it calls.

In: the words typed. Out: an exit code, text on stdout, errors on stderr. Imports every room, each
inside the command that needs it, so that `captioner --help` loads none of them.
"""
