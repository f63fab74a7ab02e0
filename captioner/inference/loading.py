"""Chooses what captions: the compiled form of a run, or TensorFlow, which is loaded only then.

In: a run folder and the options of the captions. Out: a captioner that knows these options.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.system import console

if TYPE_CHECKING:
    from captioner.inference.base import BaseCaptioner


def load_captioner(folder: Path, options: Mapping[str, Any], *, quiet: bool = False) -> BaseCaptioner:
    """The captioner of a run: its compiled form where that can do what is asked, else TensorFlow with a word.

    Args:
        folder: of the run.
        options: fields of `CaptionOptions`; None: as the run says.
        quiet: no word.

    Raises:
        ConfigError: an impossible option, or a search that takes too long.
        RunError: there is no such run, it is not finished enough, or a file is damaged.
    """
    from captioner.inference.compiled_captioner import CompiledCaptioner, NotExported
    from captioner.inference.search_options import CaptionOptions

    wanted = CaptionOptions.of(options)
    if wanted.drawn:
        reason = "words are drawn at random"
    else:
        try:
            light = CompiledCaptioner.load(folder)
            wanted.check_search(light.decode)
            console.debug("its compiled form is loaded; TensorFlow is not needed")
            return light
        except NotExported as error:
            reason = f"{error}, which `captioner export --run {folder}` makes"
    console.info(f"TensorFlow is loaded: {reason}", quiet=quiet)
    load_tensorflow()
    from captioner.inference.captioner import Captioner

    captioner = Captioner.load(folder)
    wanted.check_search(captioner.decode)
    return captioner


def load_tensorflow() -> None:
    """Imports TensorFlow and holds back what its C++ libraries print, unless the import fails."""
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if console.verbose() else "3")
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] < "2":  # somebody wants to see it
        import tensorflow  # noqa: F401
    with console.silent_stderr():
        import tensorflow  # noqa: F401, F811
    console.debug(f"TensorFlow {tensorflow.__version__} is loaded")
