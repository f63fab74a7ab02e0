"""The web page, in Gradio: pictures in, captions out, and where the model looked for each word.

In: a `Service`. Out: Gradio blocks. Gradio gives the frame and the controls; pictures go from the browser to
/api/caption like everybody's, so that there is one door for them, with one set of limits, and nothing is
stored. What happens in the browser is in assets/page.js and page.css. Draws the examples when it is built.
"""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from captioner.apps.serving.api import described
from captioner.apps.serving.openapi import plain_page
from captioner.apps.serving.service import Service
from captioner.data.synthetic.scenes import draw, scenes

EXAMPLES = 6
EXAMPLE_PIXELS = 448
_SETTINGS_JS = "(...values) => window.captionerPage && window.captionerPage.set(values)"
_HEAD = '<link rel="stylesheet" href="page/page.css"><script src="page/page.js"></script>'
_ICON = (
    '<svg viewBox="0 0 48 48" aria-hidden="true"><rect x="5" y="9" width="38" height="30" rx="5"/>'
    '<circle cx="16.5" cy="19.5" r="3.5"/><path d="M6 35l11-9 7 5 9-10 9 9"/></svg>'
)


def build_page(service: Service) -> Any:
    """The page, to be mounted beside the API."""
    import gradio as gr

    with gr.Blocks(title="captioner", analytics_enabled=False) as page:
        with gr.Row(elem_id="bar"):
            gr.HTML(_wordmark(), elem_id="wordmark", apply_default_css=False)
            names = list(service.models)
            run = gr.Dropdown(
                names,
                value=names[0],
                label="Model",
                elem_id="model",
                container=False,
                visible=len(names) > 1,
                min_width=160,
                scale=0,
            )
        stage = gr.HTML(
            head=_HEAD,
            js_on_load="window.captionerPage.start(element)",
            elem_id="stage",
            apply_default_css=False,
        )
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            controls = [run, *_controls(service)]
        stage.value = _stage(service, [control.value for control in controls])
        gr.HTML('<div id="results" aria-live="polite"></div>', elem_id="shown", apply_default_css=False)
        for control in controls:
            control.change(None, controls, None, js=_SETTINGS_JS)
    return page


def mount_page(api: Any, service: Service, *, host: str, port: int) -> Any:
    """Puts the page at / of the API's application; gives the application."""
    import gradio as gr

    return gr.mount_gradio_app(
        api,
        build_page(service),
        path="/",
        server_name=host,
        server_port=port,
        theme=_theme(),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        # Neither endpoint nor upload of Gradio's is reachable (see `guard`); these close them once more.
        max_file_size=0,
        blocked_paths=["/"],
    )


@cache
def example_pictures() -> tuple[bytes, ...]:
    """PNG pictures to try, of the set that draws itself."""
    drawn = scenes("test", EXAMPLES, seed=11)
    return tuple(_png(draw(scene, rng, size=EXAMPLE_PIXELS)) for scene, rng in drawn)


def add_files(api: Any, examples: Sequence[bytes]) -> None:
    """What the page fetches: its script and style, the examples, an icon. All of it is read or drawn now."""
    from starlette.responses import Response

    folder = Path(__file__).parent / "assets"
    kinds = {".js": "text/javascript", ".css": "text/css"}
    files = {f"/page/{path.name}": (path.read_bytes(), kinds[path.suffix]) for path in folder.iterdir()}
    files |= {f"/examples/{number}.png": (picture, "image/png") for number, picture in enumerate(examples)}
    files["/favicon.ico"] = (_icon(), "image/png")
    for path, (content, kind) in files.items():

        async def send(_: Any, content: bytes = content, kind: str = kind) -> Any:
            return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

        api.add_route(path, send, methods=["GET"])


def login_page() -> str:
    """What a browser without the token gets."""
    form = '<form method=post action=login><input name=token type=password autofocus aria-label="Token">'
    text = "This captioner wants its token; whoever started it knows it."
    return plain_page("captioner", f"<h1>captioner</h1><p>{text}</p>{form}<button>Enter</button></form>")


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


def _theme() -> Any:
    import gradio as gr

    sans = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    theme = gr.themes.Base(primary_hue="amber", neutral_hue="stone", font=sans, font_mono=mono)
    return theme.set(
        body_background_fill="var(--paper)",
        body_background_fill_dark="var(--paper)",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
    )


def _wordmark() -> str:
    return '<a class="mark" href="."><i></i>captioner</a><a class="api" href="docs">API</a>'


def _stage(service: Service, values: list[Any]) -> str:
    """Headline, drop zone and examples; what the script must know is in `data-config`.

    Args:
        service: whose models and limits these are.
        values: of the controls.
    """
    limits = service.limits
    config = {
        "runs": [described(model) for model in service.models.values()],
        "fileBytes": limits.picture.file_bytes,
        "values": values,
    }
    examples = "".join(
        f'<button type="button" data-example="{number}" aria-label="Example {number + 1}">'
        f'<img src="examples/{number}.png" alt="" loading="lazy"></button>'
        for number in range(EXAMPLES)
    )
    return f"""
<div class="stage" data-config="{html.escape(json.dumps(config, ensure_ascii=False))}">
  <h1>A picture goes in, <em>a sentence comes out.</em></h1>
  <p class="about" id="about"></p>
  <label class="drop" id="drop">
    <input type="file" id="files" accept="image/*,.heic,.heif,.avif,.tif,.tiff,.ppm" multiple>
    {_ICON}
    <span class="call"><b>Drop pictures here</b>, paste them, or <u>choose files</u></span>
    <span class="fine">up to {limits.picture.file_bytes / 2**20:g} MiB each. They are held in memory
    while they are described, and stored nowhere.</span>
  </label>
  <div class="try"><span>No picture at hand?</span><div class="examples">{examples}</div></div>
</div>"""


def _controls(service: Service) -> list[Any]:
    """Settings, in the order in which page.js takes their values."""
    import gradio as gr

    decode = service.default.decode
    beam = min(10, decode.beam)
    with gr.Row():
        how = gr.Radio(
            [("Find the likeliest caption", "search"), ("Draw words at random", "draw")],
            value="search",
            label="How captions are found",
            elem_id="how",
        )
        shown = gr.Slider(
            1, 10, value=beam, step=1, label="Captions shown", info="the best and its alternatives"
        )
    with gr.Row(elem_id="searching"):
        width = gr.Slider(1, 10, value=beam, step=1, label="Beam", info="captions compared at a time")
        length = gr.Slider(
            0,
            2,
            value=decode.length_normalization,
            step=0.1,
            label="Length",
            info="0 favours short captions, 2 longer ones",
        )
        repeat = gr.Slider(
            0,
            5,
            value=decode.no_repeat,
            step=1,
            label="No repeats",
            info="of so many words in a row; 0: allowed",
        )
    with gr.Row(elem_id="drawing"):
        temperature = gr.Slider(
            0.1, 2, value=0.8, step=0.1, label="Temperature", info="below 1 tamer, above 1 wilder"
        )
        top_k = gr.Slider(0, 100, value=0, step=1, label="Top k", info="from so many likeliest words; 0: all")
        top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top p", info="from the likeliest share")
        seed = gr.Slider(0, 999, value=0, step=1, label="Seed", info="the same seed, the same captions")
    with gr.Row():
        words = gr.Slider(
            3,
            60,
            value=min(60, decode.max_words),
            step=1,
            label="Most words",
            info="a caption ends here at the latest",
        )
        again = gr.Button("Caption again with these settings", elem_id="again", variant="primary")
    again.click(None, None, None, js="() => window.captionerPage.again()")
    return [how, shown, width, length, repeat, temperature, top_k, top_p, seed, words]
