"""The API of a model that writes several languages and says how sure it is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("httpx")
from fastapi.testclient import TestClient  # noqa: E402

from captioner.apps.serving.api import build_api  # noqa: E402
from captioner.apps.serving.page import add_page  # noqa: E402
from captioner.apps.serving.service import ServedModel, Service  # noqa: E402
from captioner.inference.caption import Caption  # noqa: E402
from captioner.inference.search_options import CaptionOptions  # noqa: E402

TEXTS = {"en": "a dog", "de": "ein Hund"}


def write(pixels: np.ndarray, options: CaptionOptions) -> list[Caption]:
    """As a captioner answers: in the language asked for, or in all."""
    own = {
        name: Caption("", text, -1.0, -2.0, language=name, confidence=0.25, unfamiliar=True)
        for name, text in TEXTS.items()
    }
    if options.language == "all":
        return [Caption("", "a dog", -1.0, -2.0, language="en", by_language=own)] * len(pixels)
    return [own[options.language or "en"]] * len(pixels)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    models = [ServedModel("speaks", (8, 8), write, about={"languages": ["en", "de"]})]
    models.append(ServedModel("plain", (8, 8), lambda pixels, _: [Caption("", "a cat")] * len(pixels)))
    service = Service(models)
    api = build_api(service)
    add_page(api, service)
    yield TestClient(api)
    service.close()


def ask(client: Any, **fields: str) -> Any:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    answer = client.post("/api/caption", files={"image": ("a.png", file.getvalue())}, data=fields)
    return answer.status_code, answer.json()


def test_a_picture_is_described_in_the_language_asked_for(client: Any) -> None:
    for fields, language in (({}, "en"), ({"language": "de"}, "de"), ({"language": ""}, "en")):
        status, answer = ask(client, **fields)
        picture = answer["pictures"][0]
        assert (status, picture["caption"], picture["language"]) == (200, TEXTS[language], language)
        assert (picture["confidence"], picture["unfamiliar"]) == (0.25, True)


def test_all_languages_come_in_one_answer(client: Any) -> None:
    _, answer = ask(client, language="all")
    captions = answer["pictures"][0]["captions"]
    assert {language: one["caption"] for language, one in captions.items()} == TEXTS


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"language": "dee"}, 'unknown language "dee"; did you mean "de"'),
        ({"language": "de", "run": "plain"}, "plain knows no languages; leave it out"),
        ({"language": "all", "run": "plain"}, "plain knows no languages; leave it out"),
    ],
)
def test_a_language_that_a_model_does_not_write(client: Any, fields: dict[str, str], said: str) -> None:
    status, answer = ask(client, **fields)
    assert status == 400 and said in answer["error"]


def test_languages_are_listed_and_can_be_chosen_on_the_page(client: Any) -> None:
    runs = client.get("/api/runs").json()["runs"]
    assert [run.get("languages") for run in runs] == [["en", "de"], None]
    page = client.get("/").text
    assert '<select id="language" name="language"' in page and "<option>de</option>" in page


def test_options_have_the_limits_of_every_other_door(client: Any) -> None:
    fields = client.get("/openapi.json").json()["paths"]["/api/caption"]["post"]["requestBody"]
    beam = fields["content"]["multipart/form-data"]["schema"]["properties"]["beam"]["anyOf"][0]
    assert (beam["minimum"], beam["maximum"]) == (1, 100)
    assert ask(client, beam="101")[0] == 400
    assert ask(client, beam="100", max_words="30")[0] == 200
    status, answer = ask(client, n_best="100", max_words="31")
    assert status == 400 and "with beam 100 expected max_words up to 30" in answer["error"]
    assert ask(client, length_normalisation="0.5")[0] == 200  # as it was called before
