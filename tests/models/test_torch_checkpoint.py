"""Weights in PyTorch's old form: arrays come out as they were saved, programs are not run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from captioner.errors import EncoderError
from captioner.models.torch_checkpoint import read_torch

MAGIC = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
VERSION, MACHINE = b"\x80\x02M\xe9\x03.", b"\x80\x02}."
ORDERED = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def tensor(key: str, offset: int, shape: tuple[int, int], strides: tuple[int, int], kind: str) -> bytes:
    """What PyTorch writes for an array of two axes."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + b"K\x06NtQ"
    numbers = b"".join(b"K%c" % n for n in shape) + b"\x86" + b"".join(b"K%c" % n for n in strides) + b"\x86"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K%c" % offset
        + numbers
        + b"\x89"
        + ORDERED
        + b"tR"
    )


def saved(head: bytes, stored: dict[str, np.ndarray]) -> bytes:
    keys = b"\x80\x02](" + b"".join(text(key) for key in stored) + b"e."
    data = b"".join(len(a).to_bytes(8, "little") + a.tobytes() for a in stored.values())
    return MAGIC + VERSION + MACHINE + b"\x80\x02" + head + b"." + keys + data


WEIGHTS = np.arange(6, dtype="<f4") / 4
COUNTS = np.arange(2, dtype="<i8")
HEAD = (
    ORDERED
    + b"("
    + text("rows")
    + tensor("7", 0, (2, 3), (3, 1), "FloatStorage")
    + text("turned")
    + tensor("7", 0, (2, 3), (1, 2), "FloatStorage")
    + text("count")
    + tensor("8", 1, (1, 1), (1, 1), "LongStorage")
    + b"u"
)
GOOD = saved(HEAD, {"7": WEIGHTS, "8": COUNTS})


def test_arrays_come_out_as_they_were_saved(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(GOOD)
    found = read_torch(path)
    assert list(found) == ["rows", "turned", "count"]
    np.testing.assert_array_equal(found["rows"], [[0, 0.25, 0.5], [0.75, 1, 1.25]])
    np.testing.assert_array_equal(found["turned"], [[0, 0.5, 1], [0.25, 0.75, 1.25]])
    assert found["count"].dtype == np.int64 and found["count"].tolist() == [[1]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04", "cannot be read"),
        (b"", "cannot be read"),
        (MAGIC.replace(b"\x19", b"\x18"), "not the form"),
        (GOOD[:-1], "cannot be read"),
        (GOOD[:300], "cannot be read"),
        # Python's unpickler would run these.
        (saved(b"cos\nsystem\n(" + text("touch ran") + b"tR", {}), "more than arrays: os system"),
        (saved(b"(" + text("touch ran") + b"ios\nsystem\n", {}), "more than arrays: INST"),
        (
            saved(
                HEAD.replace(b"K\x02K\x03\x86K\x03K\x01", b"K\x02K\x04\x86K\x03K\x01"),
                {"7": WEIGHTS, "8": COUNTS},
            ),
            "beyond",
        ),
        (saved(HEAD.replace(b"FloatStorage", b"HalfStorage"), {"7": WEIGHTS, "8": COUNTS}), "HalfStorage"),
    ],
)
def test_anything_else_is_refused(
    content: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(EncoderError, match=reason) as caught:
        read_torch(path)
    assert "x.pth" in str(caught.value) and not (tmp_path / "ran").exists()
