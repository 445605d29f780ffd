"""An endless source of documents about drawn scenes, with everything needed to score them exactly.

A document is a function of (seed, split, index) alone. Knows nothing of tokens, batches or models. Invariant: every
scene of a document, before and after an edit too, belongs to the source's split (`splits.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, TypeAlias

from monoformer.config.data import ScenesData
from monoformer.data.scenes.drawing import draw
from monoformer.data.scenes.instructions import VERBS, Instruction, sample_instruction
from monoformer.data.scenes.language import Description, caption, caption_in_brief, describe
from monoformer.data.scenes.layout import sample_scene
from monoformer.data.scenes.omission import LeftOut, LeftOutThings
from monoformer.data.scenes.questions import FORMS, ask
from monoformer.data.scenes.splits import Split, split_of, split_of_text
from monoformer.data.scenes.stories import tell
from monoformer.data.scenes.world import Scene
from monoformer.data.source import Order
from monoformer.document import Document, Image, Text, answer_document, describe_document, draw_document, edit_document

SCENES_TRIED = 500
"""Scenes tried for one edit; among two or three objects a few suffice."""

QUESTIONS_TRIED = 100
"""Tries at the forms that a configuration wants asked; few scenes have not enough of them after that."""

ExampleKind: TypeAlias = Literal["draw", "describe", "edit", "question", "story", "caption"]


@dataclass(frozen=True)
class Drawing:
    """Caption -> picture."""

    scene: Scene
    description: Description
    caption: str


@dataclass(frozen=True)
class Describing:
    """Picture -> caption (any equivalent caption is as right: `caption_is_exact`)."""

    scene: Scene
    description: Description
    caption: str


@dataclass(frozen=True)
class Edit:
    """Picture and instruction -> picture."""

    before: Scene
    instruction: Instruction
    text: str
    after: Scene


@dataclass(frozen=True)
class Question:
    """Picture and question -> answer."""

    scene: Scene
    question: str
    answer: str
    more: tuple[tuple[str, str], ...] = ()
    """Further questions about the picture, with their answers, as training shows them (`ScenesData.question_turns`)."""


@dataclass(frozen=True)
class Story:
    """Text alone."""

    text: str


Example: TypeAlias = Drawing | Describing | Edit | Question | Story


class Scenes:
    """Documents about drawn scenes, numbered without end."""

    def __init__(
        self, config: ScenesData, *, split: Split = "train", seed: int = 0, left_out: LeftOut = "avoided"
    ) -> None:
        """`left_out`: whether scenes avoid what the configuration leaves out, as those of both splits do, or each
        holds a pair, or has the number of objects, that was left out (`split` then only names other seeds).
        """
        self.config = config
        self.split = split
        self.seed = seed
        self.left_out = LeftOutThings(config.left_out, config.left_out_objects, left_out)
        self._order = Order(seed, config.documents) if config.documents else None

    def kind(self, index: int) -> ExampleKind:
        """Which kind example `index` is, by the configured weights."""
        config = self.config
        kinds: tuple[ExampleKind, ...] = ("draw", "describe", "edit", "question", "story", "caption")
        weights = (config.draw, config.describe, config.edit, config.question, config.story, config.caption)
        return self._rng(index, "kind").choices(kinds, weights)[0]

    def document(self, index: int) -> Document:
        """Document `index`: of weighted kinds, with pictures of the configured size, over again after `documents`."""
        return self.render(self.example(self._order.item(index) if self._order else index))

    def example(self, index: int) -> Example:
        """Example `index`, which document `index` is made from unless the documents come over again."""
        match self.kind(index):
            case "draw":
                return self._asked(index, self.drawing(index))
            case "describe":
                return self.describing(index)
            case "edit":
                return self.edit(index)
            case "question":
                return self.question(index)
            case "story":
                return self.story(index)
            case "caption":
                return Story(self.drawing(index).caption)

    def render(self, example: Example) -> Document:
        """The example as a document: a chat, or plain text for a story. What the assistant draws is a target."""
        match example:
            case Drawing():
                return draw_document(example.caption, self._picture(example.scene))
            case Describing():
                return describe_document(self._picture(example.scene), example.caption)
            case Edit():
                return edit_document(self._picture(example.before), example.text, self._picture(example.after))
            case Question():
                return answer_document(self._picture(example.scene), example.question, example.answer, *example.more)
            case Story():
                return Document((Text(example.text),))

    def drawing(self, index: int) -> Drawing:
        """Caption -> picture number `index`, whatever kind the document of that number is."""
        rng = self._rng(index, "draw")
        scene, description = self._described(rng)
        return Drawing(scene, description, caption(description))

    def describing(self, index: int) -> Describing:
        """Picture -> caption number `index`."""
        rng = self._rng(index, "describe")
        scene, description = self._described(rng)
        return Describing(scene, description, caption(description))

    def edit(self, index: int) -> Edit:
        """Edit number `index`; the five verbs are equally frequent where the numbers of objects allow all.

        Raises ValueError where no edit of that verb stays in the split: single things are too few in the held-out one.
        """
        rng = self._rng(index, "edit")
        numbers = {verb: self._numbers(verb) for verb in VERBS}
        verb = rng.choice([verb for verb in VERBS if numbers[verb]])
        for _ in range(SCENES_TRIED):
            before = self._scene(rng, numbers[verb])
            for _ in range(12):
                instruction = sample_instruction(before, verb, rng)
                try:
                    after = instruction.apply(before, rng)
                except ValueError:  # it makes no sense here, e.g. no room: try another
                    continue
                if split_of(after.kinds) == self.split and self.left_out.allow(after.kinds):
                    return Edit(before, instruction, instruction.text, after)
        raise ValueError(
            f"no edit of the kind '{verb}' was found in the split '{self.split}' with data.objects = "
            f"{self.config.objects}; allow one object more, or set data.edit to 0"
        )

    def question(self, index: int) -> Question:
        """Question number `index`."""
        rng = self._rng(index, "question")
        scene = self._scene(rng)
        asked: dict[str, str] = {}
        tries = 0
        while len(asked) < self.config.question_turns:
            further = self.config.further_questions if asked and tries < QUESTIONS_TRIED else ()
            turn = ask(scene, rng.choice(further or FORMS), rng)
            tries += 1
            if turn is not None and not self.left_out.named_in(turn[0]):
                asked[turn[0]] = turn[1]
        (question, answer), *more = asked.items()
        return Question(scene, question, answer, tuple(more))

    def story(self, index: int) -> Story:
        """Story number `index`; its split is that of its text."""
        rng = self._rng(index, "story")
        while True:
            text = tell(rng)
            if split_of_text(text) == self.split and not self.left_out.named_in(text):
                return Story(text)

    def _asked(self, index: int, drawing: Drawing) -> Drawing:
        """The drawing as training shows it: in a share of them, the caption is in brief."""
        if not self.config.brief:
            return drawing
        rng = self._rng(index, "brief")
        in_brief = rng.random() < self.config.brief
        return replace(drawing, caption=caption_in_brief(drawing.description, rng)) if in_brief else drawing

    def _scene(self, rng: Random, numbers: Sequence[int] = ()) -> Scene:
        """A scene of this split, each allowed number of things (those of `numbers`) equally likely."""
        count = rng.choice(numbers or self._numbers())
        split = self.split if self.left_out.wanted == "avoided" else None  # training shows none of them
        return sample_scene(rng, count, split=split, allowed=self.left_out.allow)

    def _numbers(self, verb: str = "") -> list[int]:
        """The numbers of things that a scene may have, before and after an edit of that verb."""
        more = {"add": 1, "remove": -1}.get(verb, 0)
        fewest, most = self.config.objects
        numbers = [count for count in range(fewest, most + 1) if self.left_out.allows_number(count)]
        return [count for count in numbers if count + more in numbers]

    def _described(self, rng: Random) -> tuple[Scene, Description]:
        """A scene and one of its equivalent full descriptions."""
        scene = self._scene(rng)
        description = describe(scene, rng=rng)
        assert description is not None, "a made scene can always be described"
        return scene, description

    def _picture(self, scene: Scene) -> Image:
        return Image(pixels=draw(scene, self.config.size))

    def _rng(self, index: int, purpose: str) -> Random:
        """A generator for this number and purpose; seeding from text is a stable hash in Python."""
        return Random(repr((self.seed, self.split, index, purpose)))
