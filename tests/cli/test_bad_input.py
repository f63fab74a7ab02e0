"""What bad input gets on the command line: a sentence with the thing and the remedy, nothing half done."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captioner.cli.main import main
from captioner.data.vocabulary import Vocabulary
from captioner.runs.run_folder import Run
from captioner.system import files
from captioner.system.files import digest_file
from captioner.system.manifest import entries, read_manifest, write_manifest
from tests.conftest import recipe_of

Refused = Callable[..., str]
ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail with exit code 2; gives the one complaint."""

    def run(*arguments: Any) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert said.count("error: ") == 1 and "Traceback" not in said, said
        return said[said.index("error: ") :]

    return run


def snapshot(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): digest_file(p) for p in folder.rglob("*") if p.is_file()}


def write_csv(folder: Path, rows: list[tuple[str, ...]]) -> Path:
    folder.mkdir(exist_ok=True)
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption", "split")[: len(rows[0])], *rows])
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """One epoch, frozen encoder."""
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_of({"decoder": {"epochs": 1}}), encoding="utf-8")
    return path


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A run to be damaged."""
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def picture(scenes_folder: Path) -> Path:
    return sorted((scenes_folder / "images").glob("test*"))[0]


# Data sets.


def test_an_empty_folder(refused, recipe, tiny_run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for command in (
        ["data", empty],
        ["train", recipe, "--data", empty, "--run", tmp_path / "run"],
        ["features", recipe, "--data", empty],
        ["evaluate", "--run", tiny_run, "--data", empty, "--out", tmp_path / "out"],
    ):
        said = refused(*command)
        assert f"{empty}: no captions found; there is nothing" in said and "--format" in said
    assert f"{empty}: no picture in this folder" in refused("caption", empty, "--run", tiny_run)
    said = refused("data", tmp_path / "nowhere")
    assert "nowhere: no such folder or file" in said
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()


def test_captions_of_another_format(refused, recipe, scenes_folder, tmp_path):
    run = tmp_path / "run"

    def train(data: Path, **sets: str) -> str:
        more = [part for key, value in sets.items() for part in ("--set", f"data.{key}={value}")]
        said = refused("train", recipe, "--data", data, "--run", run, *more)
        assert not run.exists()
        return said

    assert "no captions found" in train(scenes_folder, format="coco")
    assert 'unknown data set format "cvs"; did you mean "csv"?' in train(scenes_folder, format="cvs")
    for name, content, expected in (
        ("dataset_x.json", b'{"pictures": []}', "images"),
        ("dataset_x.json", b'{"images": [', "not JSON"),
        ("captions_train.json", b'{"annotations": 3, "images": []}', "captions_train.json"),
        ("captions.csv", b"who;what\na.png;a dog\n", "captions.csv"),
        ("captions.csv", b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe", "captions.csv"),
        ("captions.csv", b"", "captions.csv"),
        ("metadata.jsonl", b'{"file": "a.png"}\n', "metadata.jsonl"),
        ("x.token.txt", b"a.png a dog\n", "x.token.txt"),
    ):
        data = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        data.mkdir()
        (data / name).write_bytes(content)
        assert expected in train(data), (name, content)


def test_no_dev_split(refused, recipe, picture, tmp_path):
    data = write_csv(tmp_path / "data", [(f"{n}.png", f"a dog {n}", "train") for n in range(4)])
    for n in range(4):
        shutil.copy(picture, data / f"{n}.png")
    said = refused("train", recipe, "--data", data, "--run", tmp_path / "run")
    assert "no dev split: the set has train; dev would be told by" in said and "split" in said
    write_csv(data, [("0.png", "a dog")])
    said = refused("train", recipe, "--data", data, "--run", tmp_path / "run")
    assert "too few usable pictures to draw some: 1, at least 3 are needed" in said
    assert not (tmp_path / "run").exists()


# Pictures.


def bomb(path: Path) -> None:
    """A small file that says it has 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        body = kind + content
        chunks += struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.fixture
def bad_pictures(tmp_path: Path, picture: Path) -> dict[str, Path]:
    """One of each kind, with a word of what is to be said of it."""
    folder = tmp_path / "bad"
    folder.mkdir()
    content = picture.read_bytes()
    (folder / "zero.jpg").touch()
    (folder / "truncated.png").write_bytes(content[: len(content) // 2])
    (folder / "text.jpg").write_text("This is a letter, not a picture.", encoding="utf-8")
    bomb(folder / "huge.png")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "folder.jpg").mkdir()
    words = {
        "0 bytes": "zero.jpg",
        "damaged": "truncated.png",
        "no picture": "text.jpg",
        "pixels than the": "huge.png",
        "no such file": "gone.jpg",
    }
    return {word: folder / name for word, name in words.items()}


def test_captions_of_bad_pictures(bad_pictures, picture, tiny_run, tmp_path, capsys):
    misnamed = tmp_path / "really-a-png.jpg"
    shutil.copy(picture, misnamed)
    paths = [picture, *bad_pictures.values(), misnamed]
    assert main(["caption", "--run", str(tiny_run), *map(str, paths)]) == 1
    out, err = capsys.readouterr()
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert list(lines) == [str(picture), str(misnamed)] and len(set(lines.values())) == 1
    complaints = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(complaints) == len(bad_pictures) and "Traceback" not in err
    for complaint, (word, path) in zip(complaints, bad_pictures.items(), strict=True):
        assert str(path) in complaint and word in complaint

    assert main(["caption", "--run", str(tiny_run), "--json", *map(str, paths)]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["path"] for one in found] == list(map(str, paths))
    assert [one.get("caption") is None for one in found] == [False, *[True] * len(bad_pictures), False]
    assert all(word in one["error"] for word, one in zip(bad_pictures, found[1:], strict=False))


@pytest.fixture
def half_bad(bad_pictures: dict[str, Path], scenes_folder: Path, tmp_path: Path) -> Path:
    """A data set with good and bad pictures in every split."""
    data = tmp_path / "data"
    rows = []
    data.mkdir()
    for split in ("train", "dev", "test"):
        good = sorted((scenes_folder / "images").glob(f"{split}*"))[:3]
        for path in (*good, *bad_pictures.values()):
            if path.exists():  # a data set leaves out what is not there
                shutil.copy(path, data / f"{split}-{path.name}")
                rows.append((f"{split}-{path.name}", "a red circle", split))
    return write_csv(data, rows)


@pytest.mark.parametrize("trains", ['["decoder"]', '["decoder", "encoder"]'], ids=["features", "pixels"])
def test_training_with_bad_pictures_goes_on_without_them(trains, half_bad, recipe, tmp_path, capsys):
    run = tmp_path / "run"
    train = ["train", str(recipe), "--data", str(half_bad), "--run", str(run)]
    assert main([*train, "--set", f"phases.decoder.trains={trains}"]) == 1
    said = capsys.readouterr().err
    for name in ("zero.jpg", "truncated.png", "text.jpg", "huge.png"):
        assert said.count(f"train-{name}: ") == 1 and said.count(f"dev-{name}: ") == 1
        assert f"train-{name}: " in (run / "log.txt").read_text(encoding="utf-8"), "to be found later"
    entry = Run.open(run).history()[0]
    assert entry["unreadable"] == 8 and entry["train_loss"] < 10

    out = tmp_path / "out"
    evaluate = ["evaluate", "--run", str(run), "--data", str(half_bad), "--out", str(out)]
    assert main(evaluate) == 1
    assert capsys.readouterr().err.count("error: ") == 4
    predictions = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert (
        len(predictions) == 3 and json.loads((out / "scores.json").read_text(encoding="utf-8"))["failed"] == 4
    )


@pytest.mark.parametrize("trains", ['["decoder"]', '["encoder"]'], ids=["features", "pixels"])
def test_not_one_good_picture(trains, refused, recipe, tmp_path):
    data = write_csv(tmp_path / "data", [(f"{s}.png", "a dog", s) for s in ("train", "dev")])
    for split in ("train", "dev"):
        (data / f"{split}.png").write_bytes(b"no picture")
    train = (
        "train",
        recipe,
        "--data",
        data,
        "--run",
        tmp_path / "run",
        "--set",
        f"phases.decoder.trains={trains}",
    )
    assert "not one picture of the" in refused(*train)


# Run folders.

PARTS = ("config.json", "vocabulary.txt", "encoder.json", "best/best.json", "best/weights.safetensors")


@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_run_is_not_used(part, refused, run_copy, picture):
    file = run_copy / part
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for content in (None, whole[: len(whole) // 2], b"", bytes(flipped)):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        before = snapshot(run_copy)
        said = refused("caption", picture, "--run", run_copy)
        assert str(file) in said and "restore it from a copy of the run, or train again" in said
        assert str(file) in refused("info", run_copy)
        assert snapshot(run_copy) == before
        file.touch()


def test_a_vocabulary_that_does_not_fit_the_weights(refused, run_copy, picture):
    words = Vocabulary.load(run_copy / "vocabulary.txt").words
    content = read_manifest(run_copy / "config.json")
    for other in (words[:-1], (*words[:-2], words[-1], words[-2])):
        Vocabulary(other).save(run_copy / "vocabulary.txt")
        assert f"{run_copy / 'vocabulary.txt'}" in refused("caption", picture, "--run", run_copy)
        # Even if somebody has made the folder vouch for it:
        names = [name for name in PARTS if name in content["files"]]
        write_manifest(run_copy / "config.json", {**content, "files": entries(run_copy, names)})
        said = refused("caption", picture, "--run", run_copy)
        assert "these weights do not fit this run's vocabulary" in said


def test_a_damaged_checkpoint_is_passed_over(run_copy, tiny_recipe, scenes_folder, capsys):
    newest = max((run_copy / "latest" / "reward").glob("ckpt-*.data*"))
    newest.write_bytes(newest.read_bytes()[:100])
    resume = ["train", str(tiny_recipe), "--data", str(scenes_folder), "--run", str(run_copy), "--resume"]
    assert main(resume) == 0
    said = capsys.readouterr().err
    assert f"{newest.name.split('.')[0]}: not usable, going back to the one before" in said
    assert len(Run.open(run_copy).history()) == 4


def test_a_folder_that_is_no_run(refused, recipe, picture, scenes_folder, tmp_path, tiny_run):
    assert "no such folder" in refused("caption", picture, "--run", tmp_path / "nowhere")
    assert "did you mean" in refused("info", tiny_run.parent), "the folder around it"
    said = refused("train", recipe, "--data", scenes_folder, "--run", scenes_folder, "--resume")
    assert "not a run folder" in said
    said = refused("train", recipe, "--data", scenes_folder, "--run", tiny_run)
    assert "holds a run already; go on with --resume, or use another folder" in said


def test_two_trainings_in_one_folder(refused, run_copy, tiny_recipe, scenes_folder):
    with Run.open(run_copy).training():
        resume = ("train", tiny_recipe, "--data", scenes_folder, "--run", run_copy, "--resume")
        said = refused(*resume, "--set", "phases.reward.epochs=9")
        assert "in use by another process" in said
    assert Run.open(run_copy).config.phases["reward"].epochs == 1, "not even its configuration is changed"


# Names.


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["decoder.unit=3"], 'unknown key "decoder.unit"; did you mean "decoder.units"?'),
        (["phases.decoder.optimzer=adam"], 'did you mean "phases.decoder.optimizer"?'),
        (["encoder.name=mobilnet_v2"], 'unknown encoder "mobilnet_v2"; did you mean "mobilenet_v2"?'),
        (["phases.decoder.optimizer=adm"], 'unknown optimizer "adm"; did you mean "adam"?'),
        (["phases.decoder.objective=crossentropy"], 'did you mean "cross_entropy"?'),
        (["phases.decoder.objective=nowhere:loss"], "cannot import nowhere"),
        (["phases.decoder.objective=math:loss"], "math has no loss"),
        (["phases.decoder.optimizer=math:sqrt"], "expected a keras.optimizers.Optimizer"),
        (["decoder.regularizer=l3"], 'unknown regularizer "l3"; did you mean "l2"?'),
        (["decoder.attention=dott"], 'did you mean "dot"?'),
        (['phases.decoder.trains=["encoder"]', "phases.decoder.encoder_from=conv"], "unknown encoder layer"),
        (["encoder.weights=nowhere.h5"], "nowhere.h5"),
        (["encoder.size=3"], "input size 3 cannot be used (expected a multiple of 16 pixels"),
        (["decoder.units=1e9"], "expected a whole number"),
        (["train.precision=float16"], 'unknown train.precision "float16"'),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_unknown_names_and_impossible_values(wrong, said, refused, recipe, scenes_folder, tmp_path):
    sets = [part for one in wrong for part in ("--set", one)]
    run = tmp_path / "run"
    assert said in refused("train", recipe, "--data", scenes_folder, "--run", run, *sets)
    assert not run.exists()


def test_unknown_recipes_commands_options_and_splits(refused, tiny_run, scenes_folder, tmp_path, picture):
    data = ("--data", scenes_folder)
    assert 'unknown recipe "flickr8"; did you mean "flickr8k' in refused(
        "train", "flickr8", *data, "--run", "x"
    )
    assert 'unknown command "tran"; did you mean "train"?' in refused("tran")
    assert 'did you mean "--resume"?' in refused("train", "flickr8k", *data, "--run", "x", "--resum")
    out = tmp_path / "out"
    assert 'unknown split "tets"; did you mean "test"?' in refused(
        "evaluate", "--run", tiny_run, *data, "--split", "tets", "--out", out
    )
    assert "expected a whole number from 1" in refused("caption", picture, "--run", tiny_run, "--beam", "0")
    assert not out.exists() and not Path("x").exists()


def test_an_extra_that_is_not_installed(refused, recipe, scenes_folder, tmp_path, monkeypatch):
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *a: None if name == "tensorboard" else find(name, *a))
    train = ("train", recipe, "--data", scenes_folder, "--run", tmp_path / "run")
    said = refused(*train, "--set", "train.tensorboard=true")
    assert "pip install 'captioner[tensorboard]'" in said and not (tmp_path / "run").exists()


# Disks.


def no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own at `folder`, where that is allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "captioner-test", str(folder)]
    if (
        not ROOT_USER
        or shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("cannot mount a small file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def test_no_room_for_a_new_run(refused, recipe, scenes_folder, tmp_path, monkeypatch):
    train = ("train", recipe, "--data", scenes_folder, "--run", tmp_path / "run", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(files, "flush_file", no_room)
        said = refused(*train)
    assert "the disk is full" in said and "make room" in said
    assert set(snapshot(tmp_path / "run")) <= {".lock"}, "nothing half-written"
    assert main([str(part) for part in train]) == 0, "the same command, with room"


def test_the_disk_fills_up_while_saving(refused, recipe, scenes_folder, tmp_path):
    """Really; and with more room, training goes on from what was saved before."""
    disk = tmp_path / "disk"
    with small_disk(disk, "size=1m"):
        train = ("train", recipe, "--data", scenes_folder, "--run", disk / "run", "--quiet")
        filler = disk / "filler"
        for room in (600_000, 200_000):
            with open(filler, "wb") as file:
                file.truncate(0)
                free = shutil.disk_usage(disk).free
                file.write(bytes(max(free - room, 0)))
            resume = ["--resume"] if (disk / "run" / "config.json").exists() else []
            said = refused(*train, *resume)
            assert "full" in said.lower() or "No space" in said or "cannot be written" in said
            assert not [path for path in disk.rglob(".tmp-*") if path.is_file()]
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert main([str(part) for part in (*train, "--resume")]) == 0
        assert len(Run.open(disk / "run").history()) == 1


def test_the_disk_fills_up_while_drawing(refused, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "size=300k"):
        draw = ("sample", disk / "scenes", "--pictures", "200")
        assert "the disk is full" in refused(*draw)
        drawn = list((disk / "scenes" / "images").iterdir())
        for path in drawn:
            with Image.open(path) as whole:
                whole.load()
        assert 10 < len(drawn) < 200 and not (disk / "scenes" / "captions.csv").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert main([str(part) for part in draw]) == 0


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that nobody may write into, root neither."""
    if ROOT_USER:
        with small_disk(folder, "ro,size=64k"):
            yield
        return
    folder.mkdir()
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


def test_read_only_folders(refused, recipe, tiny_run, scenes_folder, picture, tmp_path, monkeypatch):
    sealed = tmp_path / "sealed"
    with read_only(sealed):
        data = ("--data", scenes_folder)
        remedy = "choose a folder you may write to, or change its rights"
        said = refused("train", recipe, *data, "--run", sealed / "run")
        assert str(sealed) in said and remedy in said
        said = refused("evaluate", "--run", tiny_run, *data, "--out", sealed / "out", "--quiet")
        assert str(sealed) in said and remedy in said
        looks = sealed / "looks.png"
        said = refused("caption", picture, "--run", tiny_run, "--attention", looks)
        assert str(sealed) in said and remedy in said
        assert str(sealed) in refused("sample", sealed / "scenes", "--pictures", "12")
        monkeypatch.setenv("CAPTIONER_CACHE", str(sealed / "cache"))
        assert str(sealed) in refused("train", recipe, *data, "--run", tmp_path / "run", "--quiet")
        assert not list(sealed.iterdir())
