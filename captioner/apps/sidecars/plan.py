"""What to write for a folder of pictures, and where: the settings of one job.

In: what was asked for on the command line or by a program. Out: a `FolderPlan`, which can be checked before
anything is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from captioner.apps.sidecars.file_kinds import WRITERS, Sidecar
from captioner.errors import ConfigError, unknown_name
from captioner.system.shard_spec import WHOLE, ShardSpec

IF_EXISTS = {  # what happens to a caption that is there and is not from this model with these settings
    "skip": "it stays as it is",
    "overwrite": "it is replaced",
    "append": "it stays, the new one is added on a line below it",
    "renew": "it is replaced if captioner wrote it and nobody has changed or accepted it; else it stays",
}
NAMES = {  # habits of naming; the second is that of darktable and digiKam
    "short": "photo.txt; photo.jpg.txt where another picture is called photo, or where it is there",
    "full": "photo.jpg.txt",
}


class Program(NamedTuple):
    """How a photo program wants its XMP sidecars."""

    names: str  # one of NAMES
    note: str = ""  # what its users have to know


PROGRAMS = {
    "darktable": Program("full"),  # photo.jpg.xmp
    "digikam": Program("full", "digiKam reads sidecars if that is switched on: Settings, Metadata, Sidecars"),
    "lightroom": Program(
        "short",  # photo.xmp
        "Lightroom reads XMP files beside raw files alone; of JPEG, TIFF and PNG it reads what is inside; "
        "captioner never writes into pictures",
    ),
}


@dataclass(frozen=True)
class FolderPlan:
    """What to write and where."""

    write: tuple[str, ...] = ("txt",)  # rows of WRITERS
    out: Path | None = None  # sidecars in the same tree under this folder; None: beside the pictures
    if_exists: str = "skip"  # one of IF_EXISTS
    names: str = "short"  # one of NAMES
    force: bool = False  # add to a sheet that is not from this program
    part: ShardSpec = WHOLE  # which of the pictures are this worker's, where several share them
    job: str = ""  # stands for the model and its settings: with another one, pictures are captioned anew

    def check(self) -> None:
        """Raises ConfigError for an unknown name, MissingExtra for an extra that is not installed."""
        for kind in self.write:
            if kind not in WRITERS:
                raise ConfigError(unknown_name("kind of file to write", kind, WRITERS))
            row = WRITERS[kind]
            if isinstance(row, Sidecar):
                row.write(b"", "a test", {"caption": "a test"})
        for what, value, known in (
            ("--if-exists", self.if_exists, IF_EXISTS),
            ("--names", self.names, NAMES),
        ):
            if value not in known:
                raise ConfigError(unknown_name(f"value of {what}", value, known))
