"""The same captions in the shape of Ollama's API, so that what speaks to Ollama can use one's own model.

    POST /api/generate   a prompt with pictures → a caption       (PhotoPrism, for one)
    POST /api/chat       messages, the last one with pictures → a caption
    GET  /api/tags, /api/ps, /api/version; POST /api/show         what clients ask before

The prompt is not read: these models have one thing to say. Of `options`, `num_predict` limits the words, and
`temperature`, `top_k`, `top_p`, `seed` draw words at random; but a temperature up to 0.2 (PhotoPrism sends
0.1 with every request) asks for the likeliest caption, and that is found by search.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from captioner.apps.serving.api import answering, captions_of
from captioner.apps.serving.requests import check_count, json_object, option, unpacked
from captioner.apps.serving.service import Served, Service
from captioner.errors import ConfigError
from captioner.inference.caption import CaptionOptions
from captioner.version import __version__

SEARCH_BELOW = 0.2  # temperatures that ask for the likeliest caption
_DRAWING = ("temperature", "top_k", "top_p")


def add_ollama(api: Any, service: Service) -> None:
    """Adds these endpoints to an application."""

    @answering
    async def generate(request: Any) -> Any:
        given = json_object(await request.body())
        return await _speak(service, given, given.get("images"), lambda text: {"response": text})

    @answering
    async def chat(request: Any) -> Any:
        given = json_object(await request.body())
        messages = given.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        if not isinstance(last, dict):
            raise ConfigError("messages: expected a list, its last with `images`")
        return await _speak(
            service,
            given,
            last.get("images"),
            lambda text: {"message": {"role": "assistant", "content": text}},
        )

    @answering
    async def tags(_: Any) -> Any:
        return {"models": [_listed(model) for model in service.models.values()]}

    @answering
    async def show(request: Any) -> Any:
        given = json_object(await request.body())
        return _shown(service.model(str(given.get("model") or given.get("name") or "")))

    @answering
    async def version(_: Any) -> Any:
        return {"version": __version__}

    for path, endpoint in (("generate", generate), ("chat", chat), ("show", show)):
        api.add_route(f"/api/{path}", endpoint, methods=["POST"])
    for path, endpoint in (("tags", tags), ("ps", tags), ("version", version)):
        api.add_route(f"/api/{path}", endpoint, methods=["GET"])


async def _speak(service: Service, given: Mapping[str, Any], images: Any, said: Any) -> Any:
    """The answer to one request; several pictures give a line each."""
    began = time.perf_counter_ns()
    model = service.model(_text(given, "model"))
    stream = given.get("stream", True)
    if not images:
        # So do clients ask Ollama to load a model: nothing to say, and that is done.
        return _answer(model, said(""), stream, reason="load", began=began)
    if not isinstance(images, list):
        raise ConfigError("images: expected a list of pictures in base64")
    check_count(images, service.limits.pictures)
    pictures = [unpacked(image, f"images[{number}]") for number, image in enumerate(images)]
    found = await captions_of(service, model, pictures, wishes_of(given.get("options")))
    errors = [caption.error for caption in found if caption.error is not None]
    if errors:
        raise ConfigError(f"the picture {errors[0]}")
    words = sum(len(caption.words) for caption in found)
    text = "\n".join(caption.text for caption in found)
    return _answer(model, said(text), stream, reason="stop", began=began, words=words)


def wishes_of(given: Any) -> CaptionOptions:
    """Ollama's `options` as ours; those that these models do not have are passed over, as Ollama does.

    >>> wishes_of({"temperature": 0.1, "num_ctx": 4096}) == CaptionOptions()
    True
    >>> wishes_of({"temperature": 0.8, "num_predict": 12})
    CaptionOptions(beam=None, n_best=1, max_words=12, length_normalisation=None, no_repeat=None, \
temperature=0.8, top_k=None, top_p=None, seed=0, attention=False, batch_size=32)
    """
    if given is None:
        return CaptionOptions()
    if not isinstance(given, dict):
        raise ConfigError("options: expected an object")
    wishes: dict[str, Any] = {}
    words = given.get("num_predict")
    if isinstance(words, int) and words > 0:  # -1 and -2 mean no limit there
        wishes["max_words"] = min(words, 60)
    temperature = given.get("temperature")
    if temperature is not None and not isinstance(temperature, int | float):
        raise ConfigError(f"temperature {temperature!r}: expected a number")
    if temperature is not None and temperature > SEARCH_BELOW:
        wishes |= {name: option(name, given[name]) for name in _DRAWING if given.get(name) is not None}
        seed = given.get("seed")
        wishes["seed"] = seed % 2**53 if isinstance(seed, int) else 0  # -1 is usual for any
    return CaptionOptions.of(wishes)


def _answer(
    model: Served, said: Mapping[str, Any], stream: Any, *, reason: str, began: int, words: int = 0
) -> Any:
    from starlette.responses import Response

    spent = time.perf_counter_ns() - began
    answer = {
        "model": f"{model.name}:latest",
        "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        **said,
        "done": True,
        "done_reason": reason,
        "total_duration": spent,
        "load_duration": 0,
        "prompt_eval_count": 0,
        "prompt_eval_duration": 0,
        "eval_count": words,
        "eval_duration": spent,
    }
    if stream is False:
        return answer
    # Ollama streams unless told otherwise: here, everything in one line.
    return Response(json.dumps(answer, ensure_ascii=False) + "\n", media_type="application/x-ndjson")


def _listed(model: Served) -> dict[str, Any]:
    name = f"{model.name}:latest"
    modified = datetime.fromtimestamp(model.about.get("modified", 0), UTC).isoformat()
    return {
        "name": name,
        "model": name,
        "modified_at": modified.replace("+00:00", "Z"),
        "size": model.about.get("bytes", 0),
        "digest": hashlib.sha256(f"{name} {modified}".encode()).hexdigest(),
        "details": _details(model),
    }


def _shown(model: Served) -> dict[str, Any]:
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _details(model),
        "model_info": {"general.architecture": "captioner", "general.name": model.name},
        "capabilities": ["completion", "vision"],
    }


def _details(model: Served) -> dict[str, Any]:
    families = ["captioner", str(model.about.get("encoder", ""))]
    sizes = {"parameter_size": f"{model.about.get('bytes', 0) / 4e6:.1f}M", "quantization_level": "F32"}
    return {"parent_model": "", "format": "safetensors", "family": "captioner", "families": families, **sizes}


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name) or ""
    if not isinstance(value, str):
        raise ConfigError(f"{name} {value!r}: expected a name")
    return value
