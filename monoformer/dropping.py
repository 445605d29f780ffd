"""What a document becomes for training: its context dropped now and then for guidance, noised before its caption.

Knows nothing of tokens. Invariant: the null contexts of training and of sampling come from the same lines
(`unconditional`).
"""

from dataclasses import replace
from itertools import pairwise
from typing import Literal

from monoformer.config.data import SequenceConfig
from monoformer.document import Document, Image, Segment, Text
from monoformer.randomness import uniform


def drop(document: Document, number: int, *, seed: int, config: SequenceConfig) -> tuple[Document, bool]:
    """Drop what precedes a target image at random, so that the model learns the contexts that guidance needs.

    Each target image draws its own number; the first that drops decides. Returns the document and whether it dropped.
    """
    for index, segment in enumerate(document.segments):
        if index == 0 or not isinstance(segment, Image) or not segment.target:
            continue  # what begins a document has no context
        draw = uniform(seed, number, index, "drop")
        has_context = any(isinstance(earlier, Image) for earlier in document.segments[:index])
        if not has_context and draw < config.drop_text:
            return unconditional(document, index, keep="nothing"), True
        if has_context and draw < 3 * config.drop_context:
            keep = ("images", "text", "nothing")[int(draw / config.drop_context)]
            return unconditional(document, index, keep=keep), True  # type: ignore[arg-type]
    return document, False


def limit_noise(document: Document, *, config: SequenceConfig) -> Document:
    """Make pictures that come directly before labelled text, their caption, noised targets (Transfusion).

    The caption reads the noised picture, so its noise is limited. Pictures with the user's words after them stay
    context, and so does every picture where `sequence.noise_limit` is 0.
    """
    if not config.noise_limit:
        return document
    segments = list(document.segments)
    for index, (segment, after) in enumerate(pairwise(document.segments)):
        ours = isinstance(after, Text) and after.role in (None, "assistant")
        if isinstance(segment, Image) and not segment.target and ours:
            segments[index] = replace(segment, target=True, noise_limit=config.noise_limit)
    return Document(tuple(segments))


def unconditional(document: Document, index: int, *, keep: Literal["nothing", "images", "text"]) -> Document:
    """The context without text, without images, or without both before segment `index`; a plain document.

    Used by training (dropping) and by sampling (guidance), so that the null context of both is the same.
    """
    kept = {"nothing": (), "images": (Image,), "text": (Text,)}[keep]
    before = [segment for segment in document.segments[:index] if isinstance(segment, kept)]
    return Document(tuple(_without_role(segment) for segment in [*before, *document.segments[index:]]))


def _without_role(segment: Segment) -> Segment:
    return replace(segment, role=None)
