"""One file a command: its arguments, its help, and what it calls. Loads nothing slow until it is run."""
