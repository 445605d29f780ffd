"""Captions of real pictures: how near written ones come to people's, and whether the right one is the likeliest.

Knows the pipeline and pictures with captions, nothing of where they come from. Invariant: every picture has its own
caption and the same number of others, drawn from a seed, never one of its own.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

from monoformer.document import Document, Image
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.material import Captioned
from monoformer.evaluate.score import Score, ratio, share
from monoformer.generate.choice import likelihoods
from monoformer.generate.passes import Context, read
from monoformer.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class CaptionEvaluator:
    """Writes a caption for every picture, and tells its first own one from `among - 1` of other pictures."""

    pipeline: Pipeline
    shown: Sequence[Captioned]
    among: int = 100
    cider: bool = True
    seed: int = 0
    chunk: int = 64
    """Pictures, or captions of one picture, in one pass."""
    journal: Journal = field(default_factory=Journal)

    def __post_init__(self) -> None:
        known = {own[0] for _, own in self.shown}
        if self.among and len(known) < self.among:
            raise ValueError(
                f"{self.among} captions are asked for, but the {len(self.shown)} pictures have {len(known)} different "
                f"ones; show more pictures (count) or give fewer (among)"
            )
        if self.cider:
            load_cider()

    @property
    def total(self) -> int:
        """Pictures, once for each score."""
        return len(self.shown) * (bool(self.among) + self.cider)

    def run(self) -> Iterator[tuple[str, float]]:
        """CIDEr-D (100 is what pycocoevalcap calls 1) on plain words; share of pictures whose caption is found."""
        if self.cider:
            written: list[str] = []
            for first in range(0, len(self.shown), self.chunk):
                chosen = self.shown[first : first + self.chunk]
                work = partial(self._write, chosen, first)
                written += self.journal.remember("write", first, count=len(chosen), compute=work)
            yield "cider_plain_words", cider(written, [own for _, own in self.shown]).scaled(100)
        if self.among:
            found = [
                self.journal.remember("find", i, count=1, compute=partial(self._find, i))
                for i in range(len(self.shown))
            ]
            yield f"caption_found_among_{self.among}", share(sum(found), len(found))

    def _write(self, chosen: Sequence[Captioned], first: int) -> list[str]:
        pictures = [Image(pixels=pixels).to_pil() for pixels, _ in chosen]
        seeds = list(range(first, first + len(chosen)))
        return self.pipeline.caption(pictures, temperature=0.0, seed=seeds)

    def _find(self, index: int) -> bool:
        """Whether the picture's own caption is likelier than every other."""
        pixels, own = self.shown[index]
        others = sorted({captions[0] for _, captions in self.shown} - set(own))
        chosen = Random(repr((self.seed, index, "captions"))).sample(others, min(self.among - 1, len(others)))
        image = self.pipeline.context_image(Image(pixels=pixels).to_pil())
        mine, *theirs = caption_likelihoods(self.pipeline, image, [own[0], *chosen], chunk=self.chunk)
        return mine > max(theirs)


def caption_likelihoods(pipeline: Pipeline, image: Image, captions: Sequence[str], *, chunk: int = 64) -> list[float]:
    """Log-likelihood of each caption as the whole answer to the picture, its end included; the picture is read once.

    ValueError for a caption that does not fit behind the picture.
    """
    engine, tokenizer = pipeline.engine, pipeline.pretrained.tokenizer
    layout = engine.sequencer.prompt(Document((image,)))
    answers = [[*tokenizer.encode(caption), tokenizer.eos] for caption in captions]
    if len(layout) + max(map(len, answers)) - 1 > engine.config.context:
        raise ValueError(
            f"a picture of {len(layout)} tokens and a caption of {max(map(len, answers))} are more than the model "
            f"reads ({engine.config.context}); shorten the captions"
        )
    context = Context(engine.reader.slots.take())
    (last,) = read(engine.network, [context], [layout])
    parts = [answers[first : first + chunk] for first in range(0, len(answers), chunk)]
    found = [value for part in parts for value in likelihoods(engine.network, context, last, part).tolist()]
    engine.reader.slots.release(context.slot)
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
