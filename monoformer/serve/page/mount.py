"""The page put together, and mounted at `/` of the server's app.

Invariant: nothing is loaded from elsewhere (the fonts are the system's), and nothing is reported to anybody.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from monoformer.config.serve import Limits
from monoformer.pipeline import Pipeline
from monoformer.serve.batcher import Batcher
from monoformer.serve.page.chat import Chat
from monoformer.serve.page.desk import Desk, friendly
from monoformer.serve.page.drawing import Drawing
from monoformer.serve.page.editing import Editing
from monoformer.serve.page.examples import Examples
from monoformer.serve.page.inside import Inside
from monoformer.serve.replicas import Replicas

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]

HOUR, DAY = 3600, 86400


def mount_page(
    app: Any,
    pipeline: Pipeline,
    batcher: Batcher | Replicas,
    *,
    name: str = "",
    examples: Examples | None = None,
    limits: Limits | None = None,
) -> Callable[[], None]:
    """Mount the page at `/` of a FastAPI app whose other routes are there already; what ends its open connections.

    `name`: what the model is called; `limits`: what one press of a button may ask for. The app's lifespan must run.
    Raises ValueError when Gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise ValueError(
            'the web page needs Gradio; pip install "monoformer[serve]", or leave the page out with --no-page'
        ) from error
    files = TemporaryDirectory(prefix="monoformer-page-")
    app.state.page_files = files  # they last as long as the app
    desk = Desk(pipeline, batcher, limits)
    page = build_page(desk, name=name, examples=examples or Examples(), folder=Path(files.name))
    page.queue(api_open=False, default_concurrency_limit=None)  # the batcher bounds what is done at once
    app.add_api_route("/v1/{path:path}", _nothing, methods=METHODS, include_in_schema=False)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        allowed_paths=[files.name],
        max_file_size=desk.limits.body,
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(
            primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=(Path(__file__).parent / "page.css").read_text(encoding="utf-8"),
    )
    mounted: Any = app.routes[-1]
    end: Callable[[], None] = mounted.app.stop_event.set
    return end


async def _nothing(path: str) -> None:
    """What the interface lacks is answered in its own form, not by the page."""
    from monoformer.serve.errors import ApiError

    raise ApiError(f"there is nothing at /v1/{path}, or not by this method", status=404)


def build_page(desk: Desk, *, name: str, examples: Examples, folder: Path) -> Any:
    """The page's four tabs; `folder` holds the pictures of the examples."""
    import gradio as gr

    drawing, editing = Drawing(desk), Editing(desk)
    model = desk.pipeline.pretrained.model
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    about = f"{name + ' · ' if name else ''}{millions:.1f}M parameters · one transformer that writes and draws"
    with gr.Blocks(title="MonoFormer", analytics_enabled=False, delete_cache=(HOUR, DAY)) as page:
        gr.HTML(f'<header class="mf-head"><b>MonoFormer</b><span>{about}</span></header>', padding=False)
        with gr.Tabs(selected="draw") as tabs:
            with gr.Tab("Draw", id="draw"):
                edit, gallery, chosen = drawing.build(examples)
            with gr.Tab("Edit", id="edit"):
                editor = editing.build(examples, folder)
            with gr.Tab("Chat", id="chat"):
                Chat(desk).build(examples, folder)
            with gr.Tab("How it works", id="how"):
                Inside(desk).build(examples)
        edit.click(
            friendly(editing.receive),
            [gallery, chosen],
            [editor, tabs],
            show_progress="hidden",
            api_visibility="private",
        )
    return page
