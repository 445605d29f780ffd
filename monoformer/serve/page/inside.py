"""The tab that shows how it works: the user's prompt as a sequence, who sees whom in it, and every denoising step."""

import asyncio
from dataclasses import replace
from html import escape
from typing import Any

import torch

from monoformer.anatomy import COLOURS, LEGEND, Part, paint_mask, take_apart
from monoformer.config.data import SequenceConfig
from monoformer.document import Document, Image, Text
from monoformer.serve.page.desk import Desk, Pace, Results, friendly
from monoformer.serve.page.examples import Examples
from monoformer.serve.page.pictures import tiles
from monoformer.serve.page.wishes import wish_drawings, write_size

WORDS = """
The network reads **one sequence**. Words are tokens, and an image is a run of patch tokens between two marks. Text sees
only what came before it; the patches of one image see each other both ways, so that all of them are denoised at once.
While the network learns, an image that is to be drawn stands there noised (red), and what comes later looks at a clean
copy of it (green). Two documents packed into one row do not see each other. All of it is one rule:

`visible(q, k) = document[q] == document[k] and k < end[q] and private[k] in (0, private[q])`
"""

SQUARES = """
**Who sees whom.** A square has a color where the token of its row sees the token of its column; the full color where
that lies ahead.
"""

STEPS = """
**Step by step.** Each picture is what the network, asked at that step, believes the finished one to be. The sampler
goes a little of the way there, and asks again.
"""


class Inside:
    """Takes a prompt apart."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        pretrained = desk.pipeline.pretrained
        # A tokenizer of its own: the engine's belongs to the batcher's thread.
        self.tokenizer = pretrained.tokenizer.beside()
        sequencer = pretrained.sequencer(SequenceConfig(drop_text=0.0, drop_context=0.0))
        self.sequencer = replace(sequencer, tokenizer=self.tokenizer)

    def build(self, examples: Examples) -> None:
        """Lay the tab out."""
        import gradio as gr

        first = examples.prompts[0] if examples.prompts else "a red circle"
        gr.Markdown(WORDS)
        with gr.Row():
            prompt = gr.Textbox(first, label="Prompt", max_length=2000, scale=3, elem_id="how-prompt")
            then = gr.Textbox("now make it red", label="A second turn (may be empty)", max_length=2000, scale=2)
            packed = gr.Checkbox(False, label="Pack a second document beside it", scale=1)
        with gr.Row():
            steps = gr.Slider(1, 40, value=min(24, self.desk.defaults.steps), step=1, label="Denoising steps", scale=3)
            look = gr.Button("Show", variant="primary", elem_id="how", scale=1)
        sequence = gr.HTML(padding=False, elem_id="how-sequence")
        with gr.Row():
            with gr.Column(scale=1, min_width=340):
                gr.Markdown(SQUARES)
                mask = gr.Image(show_label=False, format="png", elem_id="how-mask", buttons=["fullscreen"])
            with gr.Column(scale=1, min_width=340):
                gr.Markdown(STEPS)
                pictures = gr.HTML(padding=False, elem_id="how-steps")
        gr.on(
            [look.click, prompt.submit],
            friendly(self.show),
            [prompt, then, packed, steps],
            [sequence, mask, pictures],
            show_progress="hidden",
            api_visibility="private",
        )

    async def show(self, prompt: str, then: str, packed: bool, steps: int) -> Results:
        """The sequence at once, then its mask, then the steps as they come."""
        import gradio as gr

        size = self.desk.sizes[0]
        (request,) = wish_drawings(
            self.desk, prompt, count=1, size=write_size(size), seed=self.desk.defaults.seed, steps=int(steps)
        )
        documents = write_documents(prompt, then, packed, size)
        layouts = [self.sequencer.document(document) for document in documents]
        yield chips([self.take_apart(document) for document in documents]), gr.skip(), ""
        yield gr.skip(), await asyncio.to_thread(paint_mask, layouts, self.tokenizer, inches=6.5), gr.skip()
        seen: list[Image] = []
        names: list[str] = []
        pace = Pace()
        async for event in self.desk.follow(request):
            if event.image is not None:
                seen.append(event.image)
                names.append("picture" if event.kind == "image" else f"{event.step} of {event.steps}")
            if event.kind == "end" or (event.kind == "progress" and pace.is_due()):
                yield gr.skip(), gr.skip(), tiles(seen, names)

    def take_apart(self, document: Document) -> list[Part]:
        """The parts of a document as training would lay it out."""
        return take_apart(self.sequencer.document(document), self.tokenizer)


def write_documents(prompt: str, then: str, packed: bool, size: tuple[int, int]) -> list[Document]:
    """What training would read: the prompt and its picture, a second turn, a described picture beside it."""
    blank = torch.zeros((3, *size), dtype=torch.uint8)
    drawn = Image(pixels=blank, target=True, role="assistant")
    turns = [said.strip() for said in (prompt, then) if said.strip()]
    documents = [Document(tuple(segment for said in turns for segment in (Text(said, "user"), drawn)))]
    if packed:
        documents.append(Document((Image(pixels=blank, role="user"), Text(turns[0], "assistant"))))
    return documents


def chips(documents: list[list[Part]]) -> str:
    """HTML: every part of the packed documents as a small coloured box, with a legend."""
    rows = []
    for parts in documents:
        boxes = [
            f'<span class="mf-chip" style="background:{_colour(part)}">{escape(part.name)}</span>' for part in parts
        ]
        rows.append(f'<div class="mf-chips">{"".join(boxes)}</div>')
    count = sum(part.tokens for parts in documents for part in parts)
    legend = [
        f'<span class="mf-chip" style="background:rgb{COLOURS[kind]}">{name}</span>' for kind, name in LEGEND.items()
    ]
    return f'{"".join(rows)}<div class="mf-legend">{count} tokens · {"".join(legend)}</div>'


def _colour(part: Part) -> Any:
    return f"rgb{COLOURS[part.kind]}"
