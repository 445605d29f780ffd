"""Exact scores: is a picture what its caption asked for, a caption what its picture shows, an edit just what was said?

Works on scenes; the evaluator reads them from pixels with `parse`. Invariant: no score depends on the order of things.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from monoformer.data.scenes.instructions import Add, Instruction, Move, Recolour, Remove, Reshape
from monoformer.data.scenes.language import Description, read_caption
from monoformer.data.scenes.world import Scene, Thing, quadrant, relation

STILL: Final = 0.06
"""A thing has not moved if neither coordinate changed by more than this share of the picture's side."""


@dataclass(frozen=True)
class Agreement:
    """Shares of the asked things that were drawn, each under its best one-to-one matching with the seen things."""

    colour: float
    """... with the right colour."""
    colour_and_shape: float
    """... with the right colour and shape."""
    kind: float
    """... with the right colour, shape and size."""


def matches(description: Description, scene: Scene) -> bool:
    """Whether the scene holds just the described things, with every stated relation and, if named, the background."""
    if Counter(description.things) != Counter(thing.kind for thing in scene.things):
        return False
    if description.background not in (None, scene.background):
        return False
    first, *others = (next(thing for thing in scene.things if thing.kind == kind) for kind in description.things)
    return all(relation(first, other) == said for said, other in zip(description.relations, others, strict=True))


def caption_is_exact(text: str, scene: Scene) -> bool:
    """Whether the text is a caption that lists all things and the background, and whose relations hold."""
    description = read_caption(text)
    return description is not None and description.background is not None and matches(description, scene)


def agreement(description: Description, scene: Scene | None) -> Agreement:
    """How many of the asked things were drawn; all zero if the picture was no scene."""
    asked, seen = description.things, () if scene is None else tuple(thing.kind for thing in scene.things)
    return Agreement(
        colour=_share((kind.colour for kind in asked), (kind.colour for kind in seen)),
        colour_and_shape=_share((kind.name for kind in asked), (kind.name for kind in seen)),
        kind=_share(asked, seen),
    )


def edit_is_exact(before: Scene, instruction: Instruction, after: Scene) -> bool:
    """Whether just the instructed change was made: that, the number of things, and all else as and where it was.

    A recoloured or reshaped thing also stays where it was; a moved one is in the named quadrant; an added one has the
    named relation. `STILL` says what counts as staying.
    """
    named = before.find(instruction.name)
    if named is None or before.background != after.background:
        return False
    expected = list(before.things)
    unseen = list(after.things)
    match instruction:
        case Recolour():
            expected[expected.index(named)] = replace(named, colour=instruction.colour)
        case Reshape():
            expected[expected.index(named)] = replace(named, shape=instruction.shape)
        case Remove():
            expected.remove(named)
        case Move():
            expected.remove(named)
            moved = [thing for thing in unseen if thing.kind == named.kind and quadrant(thing) == instruction.where]
            if len(moved) != 1:
                return False
            unseen.remove(moved[0])
        case Add():
            added = [t for t in unseen if t.kind == instruction.kind and relation(t, named) == instruction.relation]
            if len(added) != 1:
                return False
            unseen.remove(added[0])
    return len(expected) == len(unseen) and all(_stays(thing, unseen) for thing in expected)


def _stays(thing: Thing, seen: list[Thing]) -> bool:
    """Whether exactly one seen thing is of the same kind and at the same place."""
    near = [t for t in seen if t.kind == thing.kind and max(abs(t.x - thing.x), abs(t.y - thing.y)) <= STILL]
    return len(near) == 1


def _share(asked: Iterable[object], seen: Iterable[object]) -> float:
    """Share of the asked that find an equal partner among the seen, each used once."""
    wanted, there = Counter(asked), Counter(seen)
    return sum((wanted & there).values()) / sum(wanted.values())
