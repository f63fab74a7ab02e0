"""The command line: `commands/` has one file a command; beside it stands what the commands share.

In: the words typed. Out: an exit code, text on stdout, errors on stderr. Imports every other subpackage, each
inside the command that needs it, so that `captioner --help` loads none of them.
"""
