"""The drawn world: what things there are, where they may lie, and which relations between them are true.

A picture is a square of side 1 with x to the right and y down. A scene has a flat background and one to three things.
Every shape touches all four sides of the square box of its size (`SIZES` gives the side) that is centred on its x, y.
Each thing lies in its own quadrant ("top left" ...), its box at least `EDGE` from the picture's edge and at least
`GAP` from every other box. No two things of one scene have both the same colour and the same shape, so "the red
circle" always names one thing.

Knows nothing of pixels, words in sentences or documents. Invariant: the tables and rules here are frozen once results
exist, for every exact score rests on them.
"""

from dataclasses import dataclass
from typing import Final

SHAPES: Final = ("circle", "square", "triangle", "cross", "ring")
"""Triangle: point up. Cross: a plus sign. Ring: a circle with a round hole of half its diameter."""

COLOURS: Final = {
    "red": (215, 20, 40),
    "orange": (250, 125, 10),
    "yellow": (250, 225, 40),
    "green": (20, 150, 60),
    "cyan": (30, 200, 220),
    "blue": (35, 70, 225),
    "purple": (140, 40, 170),
    "black": (20, 20, 20),
}
"""RGB of the things. Any two of these and of the backgrounds are at least 90 apart (Euclid)."""

BACKGROUNDS: Final = {
    "white": (255, 255, 255),
    "grey": (150, 150, 150),
    "pink": (255, 180, 200),
    "mint": (165, 240, 175),
}
"""RGB of the flat backgrounds; no word names both a background and a thing's colour."""

SIZES: Final = {"small": 0.22, "large": 0.36}
"""Side of a thing's box, as a share of the picture's side."""

RELATIONS: Final = ("left of", "right of", "above", "below")
OPPOSITE: Final = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
HORIZONTAL: Final = ("left of", "right of")

QUADRANTS: Final = ("top left", "top right", "bottom left", "bottom right")
"""A thing is in the quadrant that its centre is in."""

EDGE: Final = 0.04
"""Least distance of a thing's box from the edge of the picture."""
GAP: Final = 0.07
"""Least distance between the boxes of two things: 2.2 pixels at 32 x 32."""

RELATION_DISTANCE: Final = 0.2
RELATION_DOMINANCE: Final = 1.2
"""A relation holds if the centres are `RELATION_DISTANCE` apart on its axis, and `RELATION_DOMINANCE` times as far as
on the other axis."""
CLEAR_DISTANCE: Final = 0.3
CLEAR_DOMINANCE: Final = 2.0
"""The same two numbers for the relations that made scenes state: so clear that measuring cannot overturn them."""


@dataclass(frozen=True, order=True)
class Name:
    """What singles a thing out in its scene: "the red circle"."""

    colour: str
    shape: str


@dataclass(frozen=True, order=True)
class Kind:
    """What a thing is, wherever it lies: "a small red circle"."""

    size: str
    colour: str
    shape: str

    @property
    def name(self) -> Name:
        """Colour and shape."""
        return Name(self.colour, self.shape)


@dataclass(frozen=True)
class Thing:
    """One drawn thing; x and y, in [0, 1], are the centre of its box (y down)."""

    shape: str
    colour: str
    size: str
    x: float
    y: float

    @property
    def kind(self) -> Kind:
        """Size, colour and shape."""
        return Kind(self.size, self.colour, self.shape)

    @property
    def name(self) -> Name:
        """Colour and shape."""
        return Name(self.colour, self.shape)

    @property
    def radius(self) -> float:
        """Half the side of its box."""
        return SIZES[self.size] / 2


@dataclass(frozen=True)
class Scene:
    """A background and its things, in no order that means anything."""

    background: str
    things: tuple[Thing, ...]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of its things, sorted: what the scene holds, wherever it lies."""
        return tuple(sorted(thing.kind for thing in self.things))

    def find(self, name: Name) -> Thing | None:
        """The one thing of that colour and shape; None if there is none or more than one."""
        found = [thing for thing in self.things if thing.name == name]
        return found[0] if len(found) == 1 else None


KINDS: Final = tuple(Kind(size, colour, shape) for size in SIZES for colour in COLOURS for shape in SHAPES)
"""All 80 kinds of thing."""


def relation(
    thing: Thing, other: Thing, *, distance: float = RELATION_DISTANCE, dominance: float = RELATION_DOMINANCE
) -> str | None:
    """The relation of `thing` to `other` ("left of": it lies left of the other); None between directions."""
    dx, dy = thing.x - other.x, thing.y - other.y
    along, across = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
    if along < distance or along < dominance * across:
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def clear_relation(thing: Thing, other: Thing) -> str | None:
    """The relation, if it is as clear as made scenes state them."""
    return relation(thing, other, distance=CLEAR_DISTANCE, dominance=CLEAR_DOMINANCE)


def quadrant(thing: Thing) -> str:
    """The quadrant that its centre is in."""
    return f"{'top' if thing.y < 0.5 else 'bottom'} {'left' if thing.x < 0.5 else 'right'}"


def lead(thing: Thing, scene: Scene, *, clearly: bool) -> tuple[tuple[str, Thing], ...] | None:
    """The (clear) relation of the thing to each other one, in the order of RELATIONS: what a caption can say of it.

    None if one is missing, or if of two both are horizontal or both vertical.
    """
    relate = clear_relation if clearly else relation
    others = [(said, other) for other in scene.things if other is not thing and (said := relate(thing, other))]
    if len(others) < len(scene.things) - 1 or (
        len(others) == 2 and len({said in HORIZONTAL for said, _ in others}) < 2
    ):
        return None
    return tuple(sorted(others, key=lambda pair: RELATIONS.index(pair[0])))


def is_well_made(scene: Scene) -> bool:
    """Whether the scene keeps every rule of this world: so every made scene, and every scene after an edit."""
    things = scene.things
    if (
        not 1 <= len(things) <= 3
        or len({thing.name for thing in things}) < len(things)
        or len({quadrant(thing) for thing in things}) < len(things)
    ):
        return False
    if all(lead(thing, scene, clearly=True) is None for thing in things):
        return False
    slack = 1e-9
    inside = all(EDGE - slack <= c - t.radius and c + t.radius <= 1 - EDGE + slack for t in things for c in (t.x, t.y))
    apart = all(
        max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + GAP - slack
        for i, a in enumerate(things)
        for b in things[:i]
    )
    return inside and apart
