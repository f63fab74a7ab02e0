"""`captioner completion`: Tab completes commands, options, recipes, folders. Its library loads when asked.

In: the name of a shell; or, in a shell that completes, its environment. Out: what that shell is to run.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from captioner.cli.outputs import check_files, force_argument
from captioner.errors import ConfigError, unknown_name

SHELLS = {  # shell → file that it reads by itself
    "bash": "~/.local/share/bash-completion/completions/captioner",
    "zsh": "~/.zfunc/_captioner",
    "fish": "~/.config/fish/completions/captioner.fish",
}
MORE = (
    "Prints what the shell has to run; --install puts it where the shell finds it by itself. Without a\n"
    "name, the shell is that of $SHELL."
)
EXAMPLES = "  captioner completion --install\n  captioner completion zsh > ~/.zfunc/_captioner"
WORDS = {  # metavar → what can be typed there
    "SHELL": tuple(SHELLS),
    "ACTION": ("list", "clean"),
    "DO": ("skip", "renew", "overwrite", "append"),
    "HOW": ("short", "full"),
    "KIND": ("txt", "json", "csv", "xmp"),
    "SPLIT": ("train", "dev", "test", "all"),
    "PROGRAM": ("darktable", "digikam", "lightroom"),
    "L": ("en", "de", "ko", "ja"),
}
_ENDINGS = {"HTML": ("html",), "PNG": ("png",)}


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner completion`."""
    add("shell", nargs="?", metavar="SHELL", help=f"{', '.join(SHELLS)} (that of $SHELL)")
    add("--install", action="store_true", help="write it into the folder of your shell's completions")
    force_argument(add)


def run(arguments: Namespace) -> int:
    """`captioner completion`: shell code, printed or installed."""
    import argcomplete

    shell = arguments.shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise ConfigError(unknown_name("shell", shell, SHELLS))
    code = argcomplete.shellcode(["captioner"], shell=shell)
    if not arguments.install:
        print(code)
        return 0
    from captioner.system.files import atomic_write

    path = Path(SHELLS[shell]).expanduser()
    check_files([path], "--install", force=arguments.force, ours=lambda content: b"captioner" in content)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, code)
    print(f"{path}: written; open a new {shell} and press Tab after `captioner `")
    if shell == "zsh":
        print("zsh looks there if ~/.zshrc has: fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit")
    return 0


def answer(parser: ArgumentParser) -> None:
    """Prints the completions that the shell asks for in its environment, and ends the process."""
    import argcomplete

    rows = [parser, *(row for action in parser._actions for row in _rows(action))]
    for row in rows:
        for action in row._actions:
            completer = _completer(str(action.metavar), argcomplete)
            if completer is not None:
                action.completer = completer  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


def _rows(action: Any) -> list[ArgumentParser]:
    return list(action.choices.values()) if isinstance(action.choices, dict) else []


def _completer(metavar: str, library: Any) -> Any:
    if metavar in WORDS:
        return library.completers.ChoicesCompleter(WORDS[metavar])
    if metavar == "DIR":
        return library.completers.DirectoriesCompleter()
    if metavar == "RECIPE":
        from captioner.config import recipes

        return library.completers.ChoicesCompleter(recipes())
    if metavar in _ENDINGS:
        return library.completers.FilesCompleter(_ENDINGS[metavar])
    return None
