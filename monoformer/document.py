"""Documents: text and images in reading order, before any tokenizer.

Knows nothing of tokens, rows or models. Invariant: an image is uint8 pixels (3, height, width), so that what a user
saves as PNG and sends back is exactly what the model read. Only training may know an image by its latent alone, or by
its size until it is read: its pixels are then on the meta device, a size that nobody can read by mistake.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor

Role: TypeAlias = Literal["system", "user", "assistant"]
"""Who speaks in a chat; None outside one."""


@dataclass(frozen=True)
class Text:
    """A run of text."""

    text: str
    role: Role | None = None


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image: a target (to be drawn: noised in training, has its own time) or context (clean, only read).

    What the model has drawn stays a target when it is read again: a vision encoder reads context alone.
    """

    pixels: Tensor
    """uint8 (3, height, width); on the meta device where they are still to be read, or only `moments` are known."""
    target: bool = False
    role: Role | None = None
    noise_limit: float = 1.0
    """Share of the noise levels at which a target is trained; below 1 the text after it still recognises it."""
    moments: Tensor | None = None
    """float32 (K, C, h, w) from a cache of latents: their mean and, where K is 2, their deviation."""
    later: Callable[[], Tensor] | None = None
    """Reads what is on the meta device until then: the moments where the image has any, else the pixels."""

    def __post_init__(self) -> None:
        if not 0 < self.noise_limit <= 1 or (self.noise_limit != 1 and not self.target):
            raise ValueError(
                f"Image.noise_limit must be in (0, 1], and below 1 only for a target, but is {self.noise_limit}"
            )
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 3 or self.pixels.shape[0] != 3:
            raise ValueError(
                f"Image.pixels must be uint8 of shape (3, height, width), but is {self.pixels.dtype} of "
                f"shape {tuple(self.pixels.shape)}; Image.from_pil converts any picture"
            )

    @classmethod
    def of_size(cls, size: tuple[int, int], *, later: Callable[[], Tensor]) -> "Image":
        """A picture of this height and width, whose pixels `later` reads when they are needed."""
        return cls(pixels=torch.empty((3, *size), dtype=torch.uint8, device="meta"), later=later)

    def read(self) -> "Image":
        """The same with what was still to be read; raises what reading raises."""
        if self.later is None:
            return self
        found = self.later()
        if self.moments is not None:
            return replace(self, later=None, moments=found)
        return replace(self, later=None, pixels=found)

    @property
    def has_pixels(self) -> bool:
        """Whether the pixels are known, not their size alone."""
        return not self.pixels.is_meta

    @classmethod
    def from_pil(cls, picture: PILImage.Image, *, target: bool = False, role: Role | None = None) -> "Image":
        """Any PIL picture, as `flat` shows it."""
        array = np.array(flat(picture))
        return cls(pixels=torch.from_numpy(array).permute(2, 0, 1).contiguous(), target=target, role=role)

    def to_pil(self) -> PILImage.Image:
        """The picture, RGB. Raises ValueError where only its latent is known."""
        if not self.has_pixels:
            raise ValueError("this image comes from a cache of latents, which holds no pixels; read its own source")
        return PILImage.fromarray(self.pixels.permute(1, 2, 0).numpy())


def upright(picture: PILImage.Image) -> PILImage.Image:
    """The picture as the camera was held, 16-bit grey in 8 bits: what everybody else shows of the file."""
    picture.load()
    try:
        turned = ImageOps.exif_transpose(picture)
    except Exception:  # a broken note of the camera raises anything; the picture itself is whole
        turned = picture
    if turned.mode.startswith("I"):  # PIL's own conversion clips at 255, which turns nearly everything white
        return turned.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return turned


def flat(picture: PILImage.Image) -> PILImage.Image:
    """The picture upright and RGB, transparency laid on white: palettes and transparency cannot be resized smoothly.

    Raises ValueError for one without a pixel.
    """
    if not picture.width or not picture.height:
        raise ValueError(f"a picture of {picture.width} x {picture.height} pixels shows nothing; give one with pixels")
    picture = upright(picture)
    if picture.mode in ("RGBA", "LA", "P", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = PILImage.alpha_composite(PILImage.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


Segment: TypeAlias = Text | Image


@dataclass(frozen=True)
class Document:
    """Segments in reading order. Either no segment has a role (plain document), or every one has (chat)."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        for segment in self.segments:
            if not isinstance(segment, Text | Image):
                raise ValueError(f"the segments of a document are Text(...) and Image(...), but one is {segment!r}")
            if segment.role not in (None, *get_args(Role)):
                raise ValueError(f"a role is one of {', '.join(get_args(Role))}, but one is {segment.role!r}")
        roles = [segment.role is not None for segment in self.segments]
        if any(roles) and not all(roles):
            raise ValueError("either every segment of a document has a role or none has, but this one mixes both")

    @property
    def is_chat(self) -> bool:
        """Whether the segments carry roles."""
        return bool(self.segments) and self.segments[0].role is not None

    @property
    def images(self) -> tuple[Image, ...]:
        """The document's images, in order."""
        return tuple(segment for segment in self.segments if isinstance(segment, Image))

    @property
    def text(self) -> str:
        """All its words, one after the other."""
        return "".join(segment.text for segment in self.segments if isinstance(segment, Text))

    def read(self) -> "Document":
        """The same with every image read; raises what reading raises."""
        if not any(image.later for image in self.images):
            return self
        return Document(tuple(part.read() if isinstance(part, Image) else part for part in self.segments))

    def with_own_targets(self) -> "Document":
        """The same with every image of the assistant a target: it drew them, even if a user hands them back."""
        segments = (
            replace(s, target=True) if isinstance(s, Image) and s.role == "assistant" else s for s in self.segments
        )
        return Document(tuple(segments))


def draw_document(prompt: str, picture: Image) -> Document:
    """The user asks, the assistant draws."""
    return Document((Text(prompt, role="user"), replace(picture, target=True, role="assistant")))


def describe_document(picture: Image, caption: str) -> Document:
    """The user shows a picture, the assistant says what it is."""
    return Document((replace(picture, role="user"), Text(caption, role="assistant")))


def answer_document(picture: Image, question: str, answer: str, *more: tuple[str, str]) -> Document:
    """The user shows a picture and asks about it, the assistant answers; then `more` questions and answers about it."""
    turns = [(Text(ask, role="user"), Text(reply, role="assistant")) for ask, reply in ((question, answer), *more)]
    return Document((replace(picture, role="user"), *chain.from_iterable(turns)))


def edit_document(before: Image, instruction: str, after: Image) -> Document:
    """The user shows a picture and says what to change, the assistant draws it."""
    user = (replace(before, role="user"), Text(instruction, role="user"))
    return Document((*user, replace(after, target=True, role="assistant")))
