"""Documents to token sequences: template, labels, positions, who sees whom, dropping for guidance (DESIGN 4).

    bos ... boi [time] patches eoi ... eos
    clean_copy:  boi [time] noised patches [time] clean patches eoi    (both blocks share rotary positions)
    noise_draws: boi [time] noised patches [time] noised patches ... eoi    (none sees another)
    vision encoder: boi features eoi    (context images alone; what the model draws is patches, also when read again)

Knows nothing of networks. Invariant: a document read back after drawing has the layout that it had in training, since
`Sequencer.document` and `Sequencer.prompt` build both with the same lines.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Literal

from torch import Tensor

from monoformer.batch import Block, Layout
from monoformer.config.data import SequenceConfig
from monoformer.document import Document, Image, Segment, Text
from monoformer.randomness import uniform
from monoformer.tokenizer import Tokenizer

_SENTINEL = 0xE000  # private-use characters mark where segments go in the rendered chat template
_SENTINELS = re.compile("([\ue000-\uf8ff])")


@dataclass(frozen=True)
class _Token:
    """A text token on its way into a layout."""

    id: int
    labelled: bool


_Element = _Token | Image
_Pieces = list[list[_Token] | int]  # a rendered template: its own tokens, and the numbers of segments between them


@dataclass(frozen=True, kw_only=True)
class Sequencer:
    """Lays documents out for one model: its tokenizer, its time token, its patch size."""

    tokenizer: Tokenizer
    time_token: bool
    """Whether a time token precedes the patches."""
    cell: int
    """Side in pixels of what one patch token shows (autoencoder's factor times patch)."""
    two_way: bool = True
    """Whether tokens of one image see each other in both directions."""
    vision_grid: tuple[int, int] = (0, 0)
    """Features down and across that a vision encoder makes of a context image; 0: context images are patches."""
    config: SequenceConfig = field(default_factory=SequenceConfig)
    _templates: dict[tuple[tuple[str, ...], bool], _Pieces] = field(default_factory=dict, compare=False)
    """Rendered chat templates by roles."""

    def document(self, document: Document, number: int = 0, *, seed: int = 0) -> Layout:
        """The training layout of global document `number`: dropping, labels, noised and clean blocks."""
        document, dropped = drop(document, number, seed=seed, config=self.config)
        labels = not dropped and (
            self.config.text_loss_in_image_documents or not any(image.target for image in document.images)
        )
        if labels:
            document = limit_noise(document, config=self.config)
        elements = self._elements(document, answer=False)
        layout = Layout(document=number)
        image_number = 0
        for index, element in enumerate(elements):
            if isinstance(element, _Token):
                layout.add_token(element.id, labelled=labels and element.labelled)
                continue
            image_number += 1
            layout.add_token(self.tokenizer.boi, labelled=labels and _is_ours(element, document))
            read_later = _is_read(elements[index + 1 :], labels=labels)
            copied = element.target and read_later and self.config.context == "clean_copy"
            if element.target:
                self._add_noised(layout, element, image_number, copied=copied)
            if copied:
                layout.next_position -= self._length(element)
                self._add_block(layout, element, image_number)
            elif not element.target:
                self._add_context(layout, element, image_number)
            layout.add_token(self.tokenizer.eoi)
        return layout

    def prompt(self, document: Document, *, opening: Literal["text", "image"] | None = None) -> Layout:
        """A document to be continued, every image clean. `opening`: "image" ends it with boi, ready to draw."""
        layout = Layout()
        number = 0
        for element in self._elements(document, answer=True):
            if isinstance(element, _Token):
                layout.add_token(element.id)
                continue
            number += 1
            layout.add_token(self.tokenizer.boi)
            self._add_context(layout, element, number)
            layout.add_token(self.tokenizer.eoi)
        if opening == "image":
            layout.add_token(self.tokenizer.boi)
        return layout

    def tokens(self, ids: Sequence[int]) -> Layout:
        """A plain text of these token ids, to be continued; bos goes before it unless it begins with that."""
        layout = Layout()
        for token in ids if ids and ids[0] == self.tokenizer.bos else [self.tokenizer.bos, *ids]:
            layout.add_token(token)
        return layout

    def image(self, pixels: Tensor, *, position: int) -> Layout:
        """[time] patches eoi of a drawn picture, to be read clean after the boi at rotary `position - 1`."""
        layout = Layout(next_position=position)
        self._add_block(layout, Image(pixels=pixels), 1)
        layout.add_token(self.tokenizer.eoi)
        return layout

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across. Raises ValueError when the picture does not divide into patches."""
        if height % self.cell or width % self.cell:
            raise ValueError(
                f"a picture of {height}x{width} pixels does not divide into patches of {self.cell}x{self.cell}; "
                f"resize it to multiples of {self.cell}"
            )
        return height // self.cell, width // self.cell

    def _length(self, image: Image) -> int:
        height, width = self.grid(*image.pixels.shape[-2:])
        return height * width + self.time_token

    def _add_noised(self, layout: Layout, image: Image, number: int, *, copied: bool) -> None:
        """The noised block of a target, or several: private where there are others or a clean copy is read instead."""
        draws = self.config.noise_draws
        for draw in range(draws):
            if draw:
                layout.next_position -= self._length(image)
            private = (number - 1) * draws + draw + 1 if copied or draws > 1 else 0
            self._add_block(layout, image, number, noised=True, private=private)
            layout.blocks[-1] = replace(layout.blocks[-1], draw=draw, noise_limit=image.noise_limit)

    def _add_context(self, layout: Layout, image: Image, number: int) -> None:
        """An image that is only read: the encoder's features, or clean patches where there is none or we drew it."""
        if image.target or not self.vision_grid[0]:
            self._add_block(layout, image, number)
            return
        block = _block(layout, image, number, grid=self.vision_grid)
        self._add_patches(layout, replace(block, by_encoder=True))

    def _add_block(self, layout: Layout, image: Image, number: int, *, noised: bool = False, private: int = 0) -> None:
        if self.time_token:
            layout.add_token(self.tokenizer.time, private=private)
        grid = self.grid(*image.pixels.shape[-2:])
        block = _block(layout, image, number, grid=grid)
        self._add_patches(layout, replace(block, noised=noised), private=private)

    def _add_patches(self, layout: Layout, block: Block, *, private: int = 0) -> None:
        layout.blocks.append(block)
        count = block.grid[0] * block.grid[1]
        ends = [block.start + count] * count if self.two_way else None
        layout.add_tokens(self.tokenizer.patch, count, ends=ends, private=private)

    def _elements(self, document: Document, *, answer: bool) -> list[_Element]:
        if document.is_chat:
            return self._chat(document, answer=answer)
        elements: list[_Element] = [_Token(self.tokenizer.bos, labelled=False)]
        for segment in document.segments:
            elements += self._segment(segment, labelled=True)
        if not answer:
            elements.append(_Token(self.tokenizer.eos, labelled=True))
        return elements

    def _segment(self, segment: Segment, *, labelled: bool) -> list[_Element]:
        if isinstance(segment, Image):
            return [segment]
        return [_Token(token, labelled) for token in self.tokenizer.encode(segment.text)]

    def _chat(self, document: Document, *, answer: bool) -> list[_Element]:
        """The chat template around the segments; the assistant's tokens and their eos are labelled."""
        roles = tuple(str(segment.role) for segment in document.segments)
        key = (roles, answer)
        if key not in self._templates:
            if len(self._templates) >= 1000:  # a server's clients make up as many as they like
                self._templates.clear()
            self._templates[key] = self._render(roles, answer=answer)
        elements: list[_Element] = []
        for piece in self._templates[key]:
            if isinstance(piece, int):
                segment = document.segments[piece]
                elements += self._segment(segment, labelled=segment.role == "assistant")
            else:
                elements += piece
        return elements

    def _render(self, roles: tuple[str, ...], *, answer: bool) -> _Pieces:
        """The template for segments of these roles: its own tokens, and the numbers of the segments between them."""
        speaking = roles[-1] == "assistant"  # an unfinished answer is continued, not answered
        messages = [
            {"role": role, "content": "".join(chr(_SENTINEL + index) for index, _ in group)}
            for role, group in groupby(enumerate(roles), key=lambda pair: pair[1])
        ]
        rendered = self.tokenizer.render(messages, answer=answer and not speaking)
        pieces = _SENTINELS.split(rendered)
        if answer and speaking:
            pieces = pieces[:-1]  # what closes the assistant's turn
        found: _Pieces = []
        for index, piece in enumerate(pieces):
            if index % 2:
                found.append(ord(piece) - _SENTINEL)
            elif piece:
                before = found[-1] if found else None
                found.append(self._template(piece, closing=isinstance(before, int) and roles[before] == "assistant"))
        return found

    def _template(self, piece: str, *, closing: bool) -> list[_Token]:
        ids = self.tokenizer.encode_template(piece)
        last = ids.index(self.tokenizer.eos) if closing and self.tokenizer.eos in ids else -1
        return [_Token(token, labelled=index <= last) for index, token in enumerate(ids)]


def _block(layout: Layout, image: Image, number: int, *, grid: tuple[int, int]) -> Block:
    """The clean block of an image where the layout ends."""
    start, moments, later = len(layout), image.moments, image.later
    return Block(pixels=image.pixels, number=number, start=start, grid=grid, noised=False, moments=moments, later=later)


def drop(document: Document, number: int, *, seed: int, config: SequenceConfig) -> tuple[Document, bool]:
    """Drop what precedes a target image at random, so that the model learns the contexts that guidance needs.

    Each target image draws its own number; the first that drops decides. Returns the document and whether it dropped.
    """
    for index, segment in enumerate(document.segments):
        if not isinstance(segment, Image) or not segment.target:
            continue
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


def _is_ours(image: Image, document: Document) -> bool:
    """Whether the model itself opens this image, so that its boi is labelled."""
    return image.role == "assistant" if document.is_chat else image.target


def _is_read(following: list[_Element], *, labels: bool) -> bool:
    """Whether anything after an image learns from it: another image, or a labelled token beyond a closing one."""
    labelled = [element for element in following if isinstance(element, Image) or (labels and element.labelled)]
    return len(labelled) > 1 or (len(labelled) == 1 and isinstance(labelled[0], Image))
