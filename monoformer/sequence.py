"""Documents to token sequences: template, labels, positions, who sees whom (DESIGN 4).

    bos ... boi [time] patches eoi ... eos
    clean_copy:  boi [time] noised patches [time] clean patches eoi    (both blocks share rotary positions)
    noise_draws: boi [time] noised patches [time] noised patches ... eoi    (none sees another)
    vision encoder: boi features eoi    (context images alone; what the model draws is patches, also when read again)

Knows nothing of networks. Invariant: a document read back after drawing has the layout that it had in training, since
`Sequencer.document` and `Sequencer.prompt` build both with the same lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import Tensor

from monoformer.batch import Block, Layout
from monoformer.chat import ChatTemplate, Place, Run
from monoformer.config.data import SequenceConfig
from monoformer.document import Document, Image
from monoformer.dropping import drop, limit_noise
from monoformer.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Shown:
    """An image on its way into a layout."""

    image: Image
    is_ours: bool
    """Whether the model itself opens it, so that its boi is labelled."""
    copied: bool
    """Whether a clean copy stands behind its noised blocks."""


_Element = Run | Image


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a document's training layout is to be; packing needs its length alone."""

    document: int
    """Global number of the document."""
    source: int = 0
    """Which of the run's sources the document is from."""
    elements: tuple[Run | _Shown, ...]
    length: int
    """Tokens of the layout."""

    def __len__(self) -> int:
        return self.length


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

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)

    def document(self, document: Document, number: int = 0, *, seed: int = 0) -> Layout:
        """The training layout of global document `number`: dropping, labels, noised and clean blocks."""
        return self.lay_out(self.plan(document, number, seed=seed))

    def plan(self, document: Document, number: int = 0, *, seed: int = 0) -> Plan:
        """What `document` lays out; its images need not have been read."""
        document, dropped = drop(document, number, seed=seed, config=self.config)
        labels = not dropped and (
            self.config.text_loss_in_image_documents or not any(image.target for image in document.images)
        )
        if labels:
            document = limit_noise(document, config=self.config)
        elements = self._elements(document, answer=False)
        if not labels:
            elements = [Run(one.ids, labelled=False) if isinstance(one, Run) else one for one in elements]
        planned: list[Run | _Shown] = []
        for index, element in enumerate(elements):
            if isinstance(element, Image):
                copied = element.target and self.config.context == "clean_copy" and _is_read(elements[index + 1 :])
                planned.append(_Shown(element, labels and _is_ours(element, document), copied))
            else:
                planned.append(element)
        return Plan(document=number, elements=tuple(planned), length=sum(map(self._planned, planned)))

    def lay_out(self, plan: Plan) -> Layout:
        """The layout that was planned."""
        layout = Layout(document=plan.document, source=plan.source)
        number = 0
        for element in plan.elements:
            if isinstance(element, Run):
                layout.add_text(element.ids, labelled=element.labelled)
                continue
            number += 1
            image = element.image
            layout.add_token(self.tokenizer.boi, labelled=element.is_ours)
            if image.target:
                self._add_noised(layout, image, number, copied=element.copied)
            if element.copied:
                layout.next_position -= self._length(image)
                self._add_block(layout, image, number)
            elif not image.target:
                self._add_context(layout, image, number)
            layout.add_token(self.tokenizer.eoi)
        return layout

    def prompt(self, document: Document, *, opening: Literal["text", "image"] | None = None) -> Layout:
        """A document to be continued, every image clean. `opening`: "image" ends it with boi, ready to draw."""
        layout = Layout()
        number = 0
        for element in self._elements(document, answer=True):
            if isinstance(element, Run):
                layout.add_text(element.ids)
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
        layout.add_text(ids if ids and ids[0] == self.tokenizer.bos else [self.tokenizer.bos, *ids])
        return layout

    def answers(self, document: Document, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text as the whole answer to a document, what ends it included."""
        if not document.is_chat:
            return [[*self.tokenizer.encode(text), self.tokenizer.eos] for text in texts]
        last = self._template.pieces(_roles(document), answer=True)[-1]
        place = last if isinstance(last, Place) else Place(len(document.segments), blank=False)
        before = self._elements(document, answer=True)
        return [[*self._chat_text(text, before, place), self.tokenizer.turn_end] for text in texts]

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

    def _planned(self, element: Run | _Shown) -> int:
        """Tokens of its part of the layout."""
        if isinstance(element, Run):
            return len(element.ids)
        image = element.image
        if self._is_encoded(image):
            return 2 + self.vision_grid[0] * self.vision_grid[1]
        return 2 + self._length(image) * (self.config.noise_draws + element.copied if image.target else 1)

    def _is_encoded(self, image: Image) -> bool:
        """Whether it is read as the vision encoder's features."""
        return not image.target and self.vision_grid[0] > 0

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
        if not self._is_encoded(image):
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
        elements: list[_Element] = [Run([self.tokenizer.bos], labelled=False)]
        for segment in document.segments:
            if isinstance(segment, Image):
                elements.append(segment)
            else:
                elements.append(Run(self.tokenizer.encode(segment.text), labelled=True))
        if not answer:
            elements.append(Run([self.tokenizer.eos], labelled=True))
        return elements

    def _chat(self, document: Document, *, answer: bool) -> list[_Element]:
        """The chat template around the segments; the assistant's tokens and their eos are labelled, or every text."""
        roles = _roles(document)
        elements: list[_Element] = []
        for piece in self._template.pieces(roles, answer=answer):
            if not isinstance(piece, Place):
                elements += piece
            elif piece.segment < len(roles):
                segment = document.segments[piece.segment]
                if isinstance(segment, Image):
                    elements.append(segment)
                else:
                    ids = self._chat_text(segment.text, elements, piece)
                    learned = segment.role == "assistant" or self.config.learned_text == "all"
                    elements.append(Run(ids, labelled=learned))
        return elements

    def _chat_text(self, text: str, before: list[_Element], place: Place) -> list[int]:
        return self.tokenizer.encode(" " * place.blank + text, follows=self._template.before(before))


def _block(layout: Layout, image: Image, number: int, *, grid: tuple[int, int]) -> Block:
    """The clean block of an image where the layout ends."""
    start, moments, later = len(layout), image.moments, image.later
    return Block(pixels=image.pixels, number=number, start=start, grid=grid, noised=False, moments=moments, later=later)


def _roles(document: Document) -> tuple[str, ...]:
    return tuple(str(segment.role) for segment in document.segments)


def _is_ours(image: Image, document: Document) -> bool:
    """Whether the model itself opens this image, so that its boi is labelled."""
    return image.role == "assistant" if document.is_chat else image.target


def _is_read(following: list[_Element]) -> bool:
    """Whether anything after an image learns from it: another image, or a labelled token beyond a closing one."""
    if any(isinstance(element, Image) for element in following):
        return True
    return sum(len(element.ids) for element in following if isinstance(element, Run) and element.labelled) > 1
