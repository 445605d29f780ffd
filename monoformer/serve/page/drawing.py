"""The tab in which a prompt becomes pictures."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from monoformer.document import Image, Text
from monoformer.generate.session import Request
from monoformer.serve.page.board import Board
from monoformer.serve.page.controls import add_after, add_sampling
from monoformer.serve.page.desk import Desk, Pace, Results, friendly
from monoformer.serve.page.examples import Examples
from monoformer.serve.page.pictures import open_picture, png_bytes
from monoformer.serve.page.wishes import read_picture, wish_drawings, write_size

DRAWN_BY = (
    *("sampler", "steps", "spacing", "eta", "guidance", "guidance_interval", "guidance_rescale", "negative"),
    *("guided_channels", "seed"),
)
"""The settings that a picture depends on, for its PNG file."""

GREETING = '<div class="mf-greeting">The pictures appear here while they are drawn.</div>'


class Drawing:
    """Draws, keeps the pictures in a gallery, and hands one on."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self, examples: Examples) -> tuple[Any, Any, Any]:
        """Lay the tab out; the button that edits, the gallery, and the number of the picture that is chosen."""
        import gradio as gr

        sizes = [write_size(size) for size in self.desk.sizes]
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                prompt = gr.Textbox(
                    label="Prompt", lines=2, max_length=4000, placeholder="What is to be drawn?", elem_id="draw-prompt"
                )
                with gr.Row():
                    draw = gr.Button("Draw", variant="primary", elem_id="draw")
                    stop = gr.Button("Stop", min_width=60)
                most = self.desk.limits.count
                count = gr.Slider(1, most, value=min(4, most), step=1, label="Pictures", elem_id="draw-count")
                steps, guidance, seed = add_sampling(self.desk)
                size = gr.Dropdown(sizes, value=sizes[0], label="Height x width", visible=len(sizes) > 1)
                if examples.prompts:
                    prompts = list(examples.prompts)
                    gr.Examples([[text] for text in prompts], [prompt], label="Such as", example_labels=prompts)
            with gr.Column(scale=3, min_width=320):
                progress = gr.HTML(GREETING, padding=False, elem_id="draw-progress")
                gallery = gr.Gallery(
                    show_label=False, columns=2, object_fit="contain", format="png", visible=False, height=None,
                    elem_id="draw-gallery", elem_classes="mf-crisp", buttons=["download", "fullscreen"],
                    interactive=False,
                )  # fmt: skip
                chosen = gr.State(0)
                after, download, edit, describe, said = add_after("draw", edits="Edit")

        outputs = [progress, gallery, after, chosen, download, said]
        running = gr.on(
            [draw.click, prompt.submit],
            friendly(self.draw),
            [prompt, count, steps, guidance, seed, size],
            outputs,
            show_progress="hidden",
            api_visibility="private",
        )
        stop.click(None, cancels=[running], api_visibility="private")

        def choose(pictures: list[tuple[str, str]], event: gr.SelectData) -> tuple[int, str, Any]:
            return event.index, pictures[event.index][0], gr.update(value="", visible=False)

        gallery.select(choose, [gallery], [chosen, download, said], show_progress="hidden", api_visibility="private")
        describe.click(
            friendly(self.describe), [gallery, chosen], [said], show_progress="minimal", api_visibility="private"
        )
        return edit, gallery, chosen

    async def draw(self, prompt: str, count: int, steps: int, guidance: float, seed: int, size: str) -> Results:
        """Progress as it comes, then the gallery."""
        import gradio as gr

        requests = wish_drawings(
            self.desk, prompt, count=int(count), size=size, seed=int(seed), steps=int(steps), guidance=float(guidance)
        )
        seeds = [request.settings.seed for request in requests]
        board, pace = Board([f"seed {seed}" for seed in seeds]), Pace()
        hidden = gr.update(visible=False)
        yield (
            gr.update(value=board.html(), visible=True),
            hidden,
            hidden,
            0,
            gr.skip(),
            gr.update(visible=False, value=""),
        )
        async for event in self.desk.follow(*requests):
            board.take(event)
            if event.kind != "progress" or pace.is_due():
                yield gr.update(value=board.html()), *[gr.skip()] * 5
        with TemporaryDirectory(prefix="monoformer-") as folder:
            named = [
                (keep_picture(image, request, Path(folder)), f"seed {request.settings.seed}")
                for image, request in zip(board.finished, requests, strict=True)
            ]
            shown = gr.update(visible=True)
            yield hidden, gr.update(value=named, visible=True, selected_index=None), shown, 0, named[0][0], gr.skip()

    async def describe(self, gallery: Sequence[tuple[str, str]] | None, chosen: int) -> Results:
        """What the model says of the chosen picture."""
        import gradio as gr

        picture = open_picture(chosen_path(gallery, chosen))
        async for said in self.desk.describe(read_picture(self.desk, picture)):
            yield gr.update(value=said, visible=True)


def keep_picture(image: Image, request: Request, folder: Path) -> str:
    """Write a drawn picture with all that drew it into a PNG file of `folder`; its path."""
    settings = {name: value for name, value in asdict(request.settings).items() if name in DRAWN_BY}
    words = " ".join(segment.text for segment in request.document.segments if isinstance(segment, Text))
    height, width = image.pixels.shape[1:]
    path = folder / f"monoformer-{request.settings.seed}.png"
    path.write_bytes(png_bytes(image.to_pil(), {"prompt": words, "height": height, "width": width, **settings}))
    return str(path)


def chosen_path(gallery: Sequence[tuple[str, str]] | None, chosen: int) -> str:
    """The file of the chosen picture of the gallery; ValueError while there is none."""
    if not gallery:
        raise ValueError("there is no picture yet; draw one first")
    return gallery[min(chosen, len(gallery) - 1)][0]
