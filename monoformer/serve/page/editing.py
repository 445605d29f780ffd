"""The tab in which a picture is changed, by words and with a brush."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image as PILImage

from monoformer.serve.page.board import Board
from monoformer.serve.page.controls import add_after, add_sampling
from monoformer.serve.page.desk import Desk, Pace, Results, friendly
from monoformer.serve.page.drawing import chosen_path, keep_picture
from monoformer.serve.page.examples import Examples
from monoformer.serve.page.pictures import enlarged, open_picture
from monoformer.serve.page.wishes import read_picture, wish_edit

GREETING = '<div class="mf-greeting">Before and after stand here, side by side.</div>'

HELP = "paint over the picture where it may change, or paint nothing and let the model find the place"

BRUSH = "#ff2d7e"

KINDS = {"an instruction (make the circle red)": False, "a description of the new picture": True}


class Editing:
    """Changes a picture; the result can be described, or changed further."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self, examples: Examples, folder: Path) -> Any:
        """Lay the tab out; its editor. Pictures of the examples become files of `folder`."""
        import gradio as gr

        with gr.Row():
            with gr.Column(scale=1, min_width=340):
                editor = gr.ImageEditor(
                    label="Picture", type="pil", format="png", height=420,
                    brush=gr.Brush(default_size=40, colors=[BRUSH], default_color=BRUSH, color_mode="fixed"),
                    layers=False, transforms=(), sources=("upload", "clipboard"), canvas_size=(512, 512),
                    elem_id="edit-editor", buttons=["fullscreen"],
                )  # fmt: skip
                text = gr.Textbox(label="What is to change", info=HELP, max_length=4000, elem_id="edit-text")
                with gr.Row():
                    change = gr.Button("Edit", variant="primary", elem_id="edit")
                    stop = gr.Button("Stop", min_width=60)
                with gr.Accordion("More", open=False):
                    kind = gr.Radio(list(KINDS), value=next(iter(KINDS)), label="The words are")
                    strength = gr.Slider(
                        0.05, 1, value=1, step=0.05, label="Strength", info="below 1 it starts from the noised picture"
                    )
                    steps, guidance, seed = add_sampling(self.desk)
            with gr.Column(scale=1, min_width=340):
                progress = gr.HTML(GREETING, padding=False, elem_id="edit-progress")
                both = gr.ImageSlider(
                    label="Before and after", type="filepath", format="png", visible=False, elem_id="edit-both",
                    elem_classes="mf-crisp", max_height=420, interactive=False, buttons=["fullscreen"],
                )  # fmt: skip
                after, download, again, describe, said = add_after("edit", edits="Edit further")
        if examples.edits:
            shown = []
            for at, (image, words) in enumerate(examples.edits[:3]):
                path = folder / f"edit-{at}.png"
                enlarged(image.to_pil()).save(path)
                shown.append([str(path), words])
            gr.Examples(shown, [editor, text], label="Such as", elem_id="edit-examples")
        inputs = [editor, text, kind, strength, steps, guidance, seed]
        running = gr.on(
            [change.click, text.submit], friendly(self.edit), inputs, [progress, both, after, download, said],
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        stop.click(None, cancels=[running], api_visibility="private")
        again.click(friendly(self.take_over), [both], [editor], show_progress="hidden", api_visibility="private")
        describe.click(friendly(self.describe), [both], [said], show_progress="minimal", api_visibility="private")
        return editor

    async def edit(
        self,
        editor: Mapping[str, Any] | None,
        text: str,
        kind: str,
        strength: float,
        steps: int,
        guidance: float,
        seed: int,
    ) -> Results:
        """Progress as it comes, then before and after."""
        import gradio as gr

        given = editor or {}
        before, request = wish_edit(
            self.desk,
            given.get("background"),
            text,
            layers=given.get("layers") or (),
            describes=KINDS[kind],
            strength=float(strength),
            steps=int(steps),
            guidance=float(guidance),
            seed=int(seed),
        )
        board, pace, hidden = Board(["edit"]), Pace(), gr.update(visible=False)
        yield gr.update(value=board.html(), visible=True), hidden, hidden, gr.skip(), gr.update(value="", visible=False)
        async for event in self.desk.follow(request):
            board.take(event)
            if event.kind != "progress" or pace.is_due():
                yield gr.update(value=board.html()), *[gr.skip()] * 4
        with TemporaryDirectory(prefix="monoformer-") as folder:
            (after,) = board.finished
            old, new = Path(folder) / "before.png", keep_picture(after, request, Path(folder))
            before.to_pil().save(old)
            shown = gr.update(visible=True)
            yield hidden, gr.update(value=(str(old), new), visible=True), shown, new, gr.skip()

    async def describe(self, pair: tuple[str, str] | None) -> Results:
        """What the model says of the new picture."""
        import gradio as gr

        async for said in self.desk.describe(read_picture(self.desk, _second(pair))):
            yield gr.update(value=said, visible=True)

    async def take_over(self, pair: tuple[str, str] | None) -> Results:
        """The new picture as the one to be changed."""
        yield for_editor(_second(pair))

    async def receive(self, gallery: list[tuple[str, str]] | None, chosen: int) -> Results:
        """A drawn picture as the one to be changed, and the tab it is changed in."""
        import gradio as gr

        yield for_editor(open_picture(chosen_path(gallery, chosen))), gr.Tabs(selected="edit")


def for_editor(picture: PILImage.Image) -> dict[str, Any]:
    """A picture as the editor takes it, large enough for a brush."""
    shown = enlarged(picture)
    return {"background": shown, "layers": [], "composite": shown}


def _second(pair: tuple[str, str] | None) -> PILImage.Image:
    if not pair:
        raise ValueError("there is no edited picture yet; edit one first")
    return open_picture(pair[1])
