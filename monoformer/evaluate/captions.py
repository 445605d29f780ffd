"""Captions of real pictures: how near written ones come to people's, and whether the right one is the likeliest.

Knows the pipeline and pictures with captions, nothing of where they come from. Invariant: every picture has its own
caption and the same number of others, drawn from a seed, never one of its own.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import torch
from PIL import Image as PILImage
from torch import Tensor

from monoformer.document import Document, Image, Text
from monoformer.evaluate.images import draw_all
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.material import Captioned
from monoformer.evaluate.score import Score, ratio, share
from monoformer.gallery import Cell, Section, draw_gallery
from monoformer.generate.choice import likelihoods
from monoformer.generate.passes import Context, read
from monoformer.pipeline import Pipeline

BESIDE, COLUMNS = 64, 8
"""Drawings that are shown beside the true pictures, and how many side by side."""


@dataclass(frozen=True, kw_only=True)
class CaptionEvaluator:
    """Writes a caption for every picture, and tells its first own one from `among - 1` of other pictures.

    With `drawn` it is shown the model's own drawings of those captions: do its two sides agree?
    """

    pipeline: Pipeline
    shown: Sequence[Captioned]
    among: int = 100
    cider: bool = True
    drawn: bool = False
    seen: bool = False
    """Whether the run trained on these pictures."""
    seed: int = 0
    chunk: int = 64
    """Pictures, or captions of one picture, in one pass."""
    samples: Path | None = None
    """File of a picture of the first drawings, each beside the true one."""
    journal: Journal = field(default_factory=Journal)

    def __post_init__(self) -> None:
        known = {own[0] for _, own in self.shown}
        rivals = min((len(known - set(own)) for _, own in self.shown), default=0)
        if self.among and rivals < self.among - 1:
            raise ValueError(
                f"{self.among} captions are asked for, but the {len(self.shown)} pictures have {len(known)} different "
                f"ones; show more pictures (count) or give fewer (among)"
            )
        if self.cider:
            load_cider()

    @property
    def total(self) -> int:
        """Pictures, once for each score, and once if they are drawn."""
        return len(self.shown) * (bool(self.among) + self.cider + self.drawn)

    def run(self) -> Iterator[tuple[str, float]]:
        """CIDEr-D of plain words (100 is what pycocoevalcap calls 1); share of pictures whose caption is found."""
        pictures = self._draw() if self.drawn else [pixels for pixels, _ in self.shown]
        if self.cider:
            written: list[str] = []
            for first in range(0, len(pictures), self.chunk):
                chosen = pictures[first : first + self.chunk]
                work = partial(self._write, chosen, first)
                written += self.journal.remember("write", first, count=len(chosen), compute=work)
            score = cider(written, [own for _, own in self.shown]).scaled(100)
            yield f"{'seen_' * self.seen}{'drawing_' * self.drawn}cider_plain_words", score
        if self.among:
            found = [
                self.journal.remember("find", i, count=1, compute=partial(self._find, i, pixels))
                for i, pixels in enumerate(pictures)
            ]
            what = f"{'seen_' * self.seen}{'drawing' if self.drawn else 'caption'}"
            yield f"{what}_found_among_{self.among}", share(sum(found), len(found))

    def _draw(self) -> list[Tensor]:
        prompts = [Document((Text(own[0], "user"),)) for _, own in self.shown]
        chunks = draw_all(self.pipeline, prompts, seed=self.seed, chunk=self.chunk, journal=self.journal)
        drawn = [pixels for chunk in chunks for pixels in torch.from_numpy(chunk).permute(0, 3, 1, 2)]
        if self.samples is not None:
            beside(self.shown[:BESIDE], drawn).save(self.samples)
        return drawn

    def _write(self, chosen: Sequence[Tensor], first: int) -> list[str]:
        pictures = [Image(pixels=pixels).to_pil() for pixels in chosen]
        seeds = list(range(first, first + len(chosen)))
        return self.pipeline.caption(pictures, temperature=0.0, seed=seeds)

    def _find(self, index: int, pixels: Tensor) -> bool:
        """Whether the picture's own caption is likelier than every other."""
        own = self.shown[index][1]
        others = sorted({captions[0] for _, captions in self.shown} - set(own))
        chosen = Random(repr((self.seed, index, "captions"))).sample(others, self.among - 1)
        image = self.pipeline.context_image(Image(pixels=pixels).to_pil())
        mine, *theirs = caption_likelihoods(self.pipeline, image, [own[0], *chosen], chunk=self.chunk)
        return mine > max(theirs)


def beside(shown: Sequence[Captioned], drawn: Sequence[Tensor]) -> PILImage.Image:
    """The true picture and the drawn one, the caption under them."""
    cells = [
        Cell((Image(pixels=pixels).to_pil(), Image(pixels=made).to_pil()), own[0])
        for (pixels, own), made in zip(shown, drawn, strict=False)
    ]
    return draw_gallery([Section("true, drawn", tuple(cells))], columns=COLUMNS)


def caption_likelihoods(pipeline: Pipeline, image: Image, captions: Sequence[str], *, chunk: int = 64) -> list[float]:
    """Log-likelihood of each caption as the whole answer to the picture, its end included; the picture is read once.

    ValueError for a caption that does not fit behind the picture.
    """
    engine, document = pipeline.engine, Document((image,))
    layout = engine.sequencer.prompt(document)
    answers = engine.sequencer.answers(document, captions)
    if len(layout) + max(map(len, answers)) - 1 > engine.config.context:
        raise ValueError(
            f"a picture of {len(layout)} tokens and a caption of {max(map(len, answers))} are more than the model "
            f"reads ({engine.config.context}); shorten the captions"
        )
    parts = [answers[first : first + chunk] for first in range(0, len(answers), chunk)]
    with engine.turn:
        context, found = Context(engine.reader.slots.take()), list[float]()
        try:
            (last,) = read(engine.network, [context], [layout])
            found = [value for part in parts for value in likelihoods(engine.network, context, last, part).tolist()]
        finally:
            engine.reader.slots.release(context.slot, broken=not found)
    return found


def plain_words(text: str) -> str:
    """Lower case, punctuation gone, one blank between words (the usual tokenizer of these scores needs Java)."""
    return " ".join(re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)*", text.lower()))


def cider(written: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """CIDEr-D of pycocoevalcap on plain words; its rarities are those of the references."""
    keys = range(len(written))
    gold = {key: [plain_words(text) for text in references[key]] for key in keys}
    made = {key: [plain_words(written[key])] for key in keys}
    _, each = load_cider()().compute_score(gold, made)
    return ratio([float(score) for score in each], [1.0] * len(written))


def load_cider() -> type:
    """pycocoevalcap's Cider; ValueError where it is not installed."""
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError:
        raise ValueError(
            "CIDEr needs pycocoevalcap; install it with: pip install 'monoformer[evaluate]', or leave CIDEr out "
            "(--captions.no-cider)"
        ) from None
    found: type = Cider
    return found
