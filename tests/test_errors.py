"""What users are told when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioner import errors
from captioner.errors import (
    CaptionerError,
    ConfigError,
    ImageError,
    MissingExtra,
    load_object,
    unknown_name,
)


def test_every_error_is_a_captioner_error_and_stands_in_the_drawing() -> None:
    kinds = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert len(kinds) >= 8
    for kind in kinds:
        assert issubclass(kind, CaptionerError)
        assert kind.__name__ in (errors.__doc__ or "")


def test_exit_codes() -> None:
    assert CaptionerError("x").exit_code == ConfigError("x").exit_code == 2
    assert ImageError("a.jpg", "empty").exit_code == 1


def test_an_image_error_names_its_path() -> None:
    error = ImageError(Path("dogs/a.jpg"), "the file is empty")
    assert str(error) == "dogs/a.jpg: the file is empty"
    assert (error.path, error.reason) == ("dogs/a.jpg", "the file is empty")


def test_a_missing_extra_says_how_to_get_it() -> None:
    assert "pip install 'captioner[serve]'" in str(MissingExtra("serve", "the web page"))


def test_unknown_name_puts_the_nearest_first() -> None:
    text = unknown_name("encoder", "efficentnetv2_b0", ["vgg16", "efficientnetv2_b0", "resnet50"])
    assert text.startswith('unknown encoder "efficentnetv2_b0"; did you mean "efficientnetv2_b0"? known: eff')


def test_unknown_name_with_nothing_near_and_many_known() -> None:
    text = unknown_name("optimiser", "zzz", [f"name{i:02}" for i in range(12)])
    assert "did you mean" not in text
    assert text.endswith("name08, name09, … (12 in all)")


def test_load_object() -> None:
    assert load_object("pathlib:Path", "loss") is Path


def test_load_object_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "losses_of_mine.py").write_text("def focal(): return 3\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_object("losses_of_mine:focal", "loss")() == 3


@pytest.mark.parametrize(
    ("dotted", "told"),
    [("no_such_module:x", "cannot import no_such_module"), ("pathlib:Pth", "pathlib has no Pth")],
)
def test_load_object_that_is_not_there(dotted: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_object(dotted, "loss")
