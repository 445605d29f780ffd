"""Requests, what happens to them, and the state of one that is being served.

Knows nothing of passes or caches beyond their names. Invariant: `made` is what the session has told its user so far.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

from monoformer.batch import Layout
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.document import Document, Image, Role, Text
from monoformer.generate.image import Drawing
from monoformer.generate.passes import Context
from monoformer.generate.text import TextStream

Wanted: TypeAlias = Literal["text", "image", "any"]
"""Nothing but text, one picture and nothing else, or whatever the model decides."""

Reason: TypeAlias = Literal["stop", "length", "image"]
"""Why a session ended: the model or a stop string said so, no room was left, or the one picture is done."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A document so far, and what is wanted next."""

    document: Document
    want: Wanted = "any"
    settings: GenerateConfig
    """Sampler, steps, guidance, temperature, ...; `settings.seed` is the request's own."""
    size: tuple[int, int] | None = None
    """Height and width of a drawn picture; None: the last context image's, else the model's default."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a session."""

    session: int
    kind: Literal["text", "progress", "image", "end"]
    text: str = ""
    """New text."""
    image: Image | None = None
    """The finished picture."""
    step: int = 0
    """Evaluations done of the picture in progress."""
    steps: int = 0
    """Evaluations that it takes."""
    reason: Reason | None = None
    """Why the session ended."""
    made: Document | None = None
    """At the end: everything that the session made."""


@dataclass
class Session:
    """One request being served."""

    number: int
    request: Request
    layout: Layout
    """What is to be read next: the prompt, then one token or one picture at a time."""
    random: torch.Generator
    stream: TextStream
    slots: list[int] = field(default_factory=list)
    context: Context | None = None
    drawing: Drawing | None = None
    made: list[Text | Image] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Text tokens since the last picture."""
    written: int = 0
    pictures: int = 0

    @property
    def role(self) -> Role | None:
        """Whose words and pictures these are."""
        return "assistant" if self.request.document.is_chat else None

    def so_far(self) -> Document:
        """The request's document and what was made since."""
        return Document((*self.request.document.segments, *self.made))


def picture_size(document: Document, size: tuple[int, int] | None, model: ModelConfig) -> tuple[int, int]:
    """The requested height and width, else the last image's, else the model's default; ValueError if never trained."""
    if size is None and document.images:
        height, width = document.images[-1].pixels.shape[-2:]
        size = (height, width)
    size = model.image_sizes[0] if size is None else size
    if size not in model.image_sizes:
        known = ", ".join(f"{h}x{w}" for h, w in model.image_sizes)
        raise ValueError(f"the model was not trained to draw {size[0]}x{size[1]} pictures; sizes are {known}")
    return size
