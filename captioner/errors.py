"""What can go wrong for a user, and how it is said.

    CaptionerError            exit code 2: `error: …` on stderr, never a traceback
    ├── ConfigError           a recipe, a key, a value, a name
    ├── DataError             a data set: missing, unreadable, of another format
    │   └── MissingSplit      it has splits, but not the one asked for
    ├── ImageError            one picture: names its path; long jobs record it and go on
    ├── EncoderError          a CNN or its weights
    ├── CacheError            the feature cache
    ├── RunError              a run folder: missing, damaged, of another version
    └── MissingExtra          an optional package that is not installed

A message says what, the value, what was expected (nearest first) and what to do.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class CaptionerError(Exception):
    """Base of every error that a user can mend; `exit_code` is the command's exit status."""

    exit_code = 2


class ConfigError(CaptionerError):
    """A recipe, a configuration key, its value, or a name in it."""


class DataError(CaptionerError):
    """A data set that cannot be read as asked."""


class MissingSplit(DataError):
    """A data set with splits of its own, but without the one asked for."""


class ImageError(CaptionerError):
    """One picture that cannot be used.

    Args:
        path: where it came from, as the user wrote it (or "<bytes>", "<array>").
        reason: what is wrong with it, without the path.
    """

    exit_code = 1

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class EncoderError(CaptionerError):
    """A CNN that is unknown, or whose weights are missing or do not fit."""


class CacheError(CaptionerError):
    """A feature cache that is damaged, or was made for something else."""


class RunError(CaptionerError):
    """A run folder that is missing, damaged, in use, or of another version."""


class MissingExtra(CaptionerError):
    """An optional package that is not installed.

    Args:
        extra: the name in `pip install 'captioner[extra]'`.
        why: what needs it.
    """

    def __init__(self, extra: str, why: str) -> None:
        super().__init__(f"{why} needs an optional part: pip install 'captioner[{extra}]'")
        self.extra = extra


# What a module that cannot be imported would have been for, by the extra that brings it.
_EXTRA_OF = {
    "tensorflow": ("train", "training, and whatever else runs on TensorFlow,"),
    "keras": ("train", "training, and whatever else runs on TensorFlow,"),
    "tomli_w": ("train", "training, and whatever else writes a configuration,"),
    "nltk": ("train", "scoring"),
    "matplotlib": ("train", "drawing"),
}


def missing_extra(error: ModuleNotFoundError) -> MissingExtra | None:
    """The sentence for a module that is not installed, if an extra brings it.

    >>> print(missing_extra(ModuleNotFoundError(name="matplotlib.axes")))
    drawing needs an optional part: pip install 'captioner[train]'
    """
    found = _EXTRA_OF.get((error.name or "").partition(".")[0])
    return MissingExtra(*found) if found else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a table, nearest known names first (at most ten).

    >>> print(unknown_name("encoder", "resnet5", ["vgg16", "resnet50"]))
    unknown encoder "resnet5"; did you mean "resnet50"? known: resnet50, vgg16
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    ordered = near + [other for other in names if other not in near]
    hint = f'; did you mean "{near[0]}"?' if near else ";"
    more = f", … ({len(ordered)} in all)" if len(ordered) > 10 else ""
    return f'unknown {kind} "{name}"{hint} known: {", ".join(ordered[:10])}{more}'


def load_object(dotted: str, kind: str) -> Any:
    """The object behind `"package.module:name"`; modules beside the caller's folder count too.

    Raises:
        ConfigError: the module or the name in it cannot be found.
    """
    module_name, _, name = dotted.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise ConfigError(f'{kind} "{dotted}": cannot import {module_name} ({error})') from error
    except AttributeError as error:
        raise ConfigError(f'{kind} "{dotted}": {module_name} has no {name}') from error
