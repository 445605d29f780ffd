"""Captions: exact English for scenes, both ways.

    caption    := kind [ relation kind [ "and" relation kind ] ] [ "on a" background "background" ]
    kind       := "a" size colour shape
    relation   := "left of" | "right of" | "above" | "below"

Both relations are said of the first thing: "a large blue square left of a small red circle and above a small green
ring on a grey background" has the square left of the circle and the square above the ring. With three things one
relation is horizontal and one vertical. Knows nothing of pixels. Invariant: `read_caption(caption(d)) == d`, and
`read_caption` is None for any text that `caption` cannot say. The grammar is frozen once results exist.
"""

import re
from dataclasses import dataclass, replace
from random import Random

from monoformer.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    HORIZONTAL,
    RELATIONS,
    SHAPES,
    SIZES,
    Kind,
    Name,
    Scene,
    lead,
)


@dataclass(frozen=True)
class Description:
    """What a caption says: `things[0]` is `relations[i]` (of) `things[i + 1]`; background None if not named."""

    things: tuple[Kind, ...]
    relations: tuple[str, ...]
    background: str | None

    def __post_init__(self) -> None:
        if not 1 <= len(self.things) <= 3 or len(self.relations) != len(self.things) - 1:
            raise ValueError("a description has 1 to 3 things, and one relation less than things")
        if len({thing.name for thing in self.things}) < len(self.things):
            raise ValueError("the things of a description must differ in colour or shape")
        if len(self.relations) == 2 and sum(said in HORIZONTAL for said in self.relations) != 1:
            raise ValueError("of two relations one must be horizontal and one vertical")


def options(words: object) -> str:
    """A group of a regular expression that matches one of the words (a table or tuple of them)."""
    assert isinstance(words, (dict, tuple))
    return f"({'|'.join(words)})"


KIND_PATTERN = f"{options(SIZES)} {options(COLOURS)} {options(SHAPES)}"
NAME_PATTERN = f"{options(COLOURS)} {options(SHAPES)}"
RELATION_PATTERN = options(RELATIONS)
CAPTION = re.compile(
    f"a {KIND_PATTERN}(?: {RELATION_PATTERN} a {KIND_PATTERN}(?: and {RELATION_PATTERN} a {KIND_PATTERN})?)?"
    f"(?: on a {options(BACKGROUNDS)} background)?"
)


def say_kind(kind: Kind) -> str:
    """E.g. "small red circle"."""
    return f"{kind.size} {kind.colour} {kind.shape}"


def say_name(name: Name) -> str:
    """E.g. "red circle"."""
    return f"{name.colour} {name.shape}"


def caption(description: Description) -> str:
    """The description as text."""
    said = f"a {say_kind(description.things[0])}"
    for index, (word, kind) in enumerate(zip(description.relations, description.things[1:], strict=True)):
        said += f"{' and' if index else ''} {word} a {say_kind(kind)}"
    return said if description.background is None else f"{said} on a {description.background} background"


def caption_in_brief(description: Description, rng: Random) -> str:
    """The description as text without its background, its sizes or both: "a red circle left of a blue ring"."""
    background, sizes = rng.choice(((False, True), (True, False), (False, False)))
    said = caption(description if background else replace(description, background=None))
    return said if sizes else re.sub(rf"\ba {options(SIZES)} ", "a ", said)


def read_caption(text: str) -> Description | None:
    """The description that a caption says; None for any other text."""
    found = CAPTION.fullmatch(text)
    if found is None:
        return None
    groups = found.groups()
    kinds = tuple(Kind(*groups[at : at + 3]) for at in (0, 4, 8) if groups[at] is not None)
    relations = tuple(groups[at] for at in (3, 7) if groups[at] is not None)
    try:
        return Description(kinds, relations, groups[11])
    except ValueError:
        return None


def describe(scene: Scene, *, rng: Random | None = None) -> Description | None:
    """A full description of the scene; None if no thing can be said to lead it (never of a made scene).

    Without `rng` it is canonical: the leftmost possible first thing, horizontal relation first. With `rng` it is any
    of the equivalent ones. Where clear relations suffice, only they are stated.
    """
    things = sorted(scene.things, key=lambda thing: (thing.x, thing.y))
    for clearly in (True, False):
        led = [(thing, others) for thing in things if (others := lead(thing, scene, clearly=clearly)) is not None]
        if led:
            break
    else:
        return None
    first, others = rng.choice(led) if rng else led[0]
    if rng:
        others = tuple(rng.sample(others, len(others)))
    try:
        return Description(
            (first.kind, *(other.kind for _, other in others)), tuple(said for said, _ in others), scene.background
        )
    except ValueError:  # two things of one name, or more than three things: no caption says that
        return None
