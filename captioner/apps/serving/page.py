"""The web page: pictures in, captions out, and where the model looked for each word; and two pages beside it.

In: a `Service`. Out: HTML from `templates/` (the page, the API's description, the question for the token) and
what it fetches: `assets/`, example pictures, an icon. Pictures go from the browser to /api/caption like
everybody's, so that there is one door for them, with one set of limits, and nothing is stored. Nothing is
loaded from elsewhere. What happens in the browser is in assets/page.js.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageDraw
from starlette.staticfiles import StaticFiles

from captioner.apps.serving.schemas import OPTIONS
from captioner.apps.serving.service import Service
from captioner.data.synthetic.scenes import draw, scenes

HERE = Path(__file__).parent
EXAMPLES = 6
EXAMPLE_PIXELS = 448
_TEMPLATES = Environment(
    loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


@dataclass(frozen=True)
class Control:
    """A slider of the page's settings; its limits are those of the option unless closer ones are given.

    Args:
        option: name in `OPTIONS`.
        label: what a person calls it.
        hint: what it does, in a few words.
        step: of the slider.
        low: left end of the slider, if not the option's.
        high: right end of the slider, if not the option's.
        value: at first; None: what the first model is configured for.
    """

    option: str
    label: str
    hint: str
    step: float = 1
    low: float | None = None
    high: float | None = None
    value: float | None = None


ALWAYS = (
    Control("n_best", "Captions shown", "the best and its alternatives", high=10),
    Control("max_words", "Most words", "a caption ends here at the latest", low=3, high=60),
)
SEARCHING = (
    Control("beam", "Beam", "captions compared at a time", high=10),
    Control("length_normalization", "Length", "0 favours short captions, 2 longer ones", 0.1, high=2),
    Control("no_repeat", "No repeats", "of so many words in a row; 0: allowed", high=5),
)
DRAWING = (
    Control("temperature", "Temperature", "below 1 tamer, above 1 wilder", 0.1, 0.1, 2, value=0.8),
    Control("top_k", "Top k", "from so many likeliest words; 0: all", high=100, value=0),
    Control("top_p", "Top p", "from the likeliest share", 0.05, 0.05, value=1),
    Control("seed", "Seed", "the same seed, the same captions", high=999, value=0),
)


def add_page(api: FastAPI, service: Service) -> None:
    """Puts the page at / of an application, and what it fetches beside it. All is read or drawn now."""
    page = _page(service)

    @api.get("/", include_in_schema=False)
    async def show() -> HTMLResponse:
        return HTMLResponse(page, headers={"cache-control": "no-cache"})

    pictures = {f"/examples/{number}.png": picture for number, picture in enumerate(example_pictures())}
    for path, content in {**pictures, "/favicon.ico": _icon()}.items():

        async def send(_: Any, content: bytes = content) -> Response:
            return Response(content, media_type="image/png", headers={"cache-control": "no-cache"})

        api.add_route(path, send, methods=["GET"])
    api.mount("/page", StaticFiles(directory=HERE / "assets"))


@cache
def example_pictures() -> tuple[bytes, ...]:
    """PNG pictures to try, of the set that draws itself."""
    drawn = scenes("test", EXAMPLES, seed=11)
    return tuple(_png(draw(scene, rng, size=EXAMPLE_PIXELS)) for scene, rng in drawn)


def login_page() -> str:
    """What a browser without the token gets."""
    return _TEMPLATES.get_template("login.html").render()


def docs_page(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as HTML."""
    operations = [
        {"path": path, "method": method.upper(), **operation, "forms": list(_forms(document, operation))}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return _TEMPLATES.get_template("docs.html").render(info=document["info"], operations=operations)


def _forms(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The content types that an operation takes, with the names, kinds and meanings of their fields."""
    contents = operation.get("requestBody", {}).get("content", {})
    for kind, content in contents.items():
        schema = content["schema"]
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        fields = schema.get("properties", {})
        if fields and not (kind == "application/json" and len(contents) > 1):
            rows = [(name, _kind(one), one.get("description", "")) for name, one in fields.items()]
            yield {"kind": kind, "fields": rows}


def _kind(schema: Mapping[str, Any]) -> str:
    """What a field holds, in words."""
    schema = {**schema, **schema.get("anyOf", [{}])[0]}  # the other is null
    if "maximum" in schema:
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        above = "" if "minimum" in schema else "above "
        return f"{schema['type']}, {above}{low:,} to {schema['maximum']:,}"
    kind = schema.get("type", "")
    return {"array": "list", "boolean": "true or false"}.get(kind, kind)


def _page(service: Service) -> str:
    runs = [model.described() for model in service.models.values()]
    limits = service.limits
    corrections = service.corrections is not None
    config = {"runs": runs, "fileBytes": limits.picture.file_bytes, "corrections": corrections}
    return _TEMPLATES.get_template("page.html").render(
        config=json.dumps(config, ensure_ascii=False),
        names=list(service.models),
        corrections=corrections,
        languages=list(dict.fromkeys(name for run in runs for name in run.get("languages", ()))),
        mebibytes=f"{limits.picture.file_bytes / 2**20:g}",
        examples=range(EXAMPLES),
        **{
            name: [_slider(control, service) for control in group]
            for name, group in (("always", ALWAYS), ("searching", SEARCHING), ("drawing", DRAWING))
        },
    )


def _slider(control: Control, service: Service) -> dict[str, Any]:
    """A control as the template wants it."""
    bounds = OPTIONS[control.option]
    low = bounds.low if control.low is None else control.low
    high = bounds.high if control.high is None else control.high
    decode = service.default.decode
    configured = {"n_best": decode.beam}
    start = control.value
    if start is None:
        start = configured.get(control.option) or getattr(decode, control.option)
    numbers = {"low": low, "high": high, "step": control.step, "value": min(high, max(low, start))}
    written = {name: f"{number:g}" for name, number in numbers.items()}
    return {"name": control.option, "label": control.label, "hint": control.hint, **written}


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _icon() -> bytes:
    picture = Image.new("RGBA", (256, 256))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((8, 8, 248, 248), fill="#fbe9cf")
    pen.ellipse((68, 68, 188, 188), fill="#c8741a")
    return _png(picture.resize((64, 64), Image.Resampling.LANCZOS))
