"""Scenes from a random generator: which things, and where they lie.

Knows nothing of pixels or words. Invariant: every scene is well made (`is_well_made`), and depends on the generator's
state alone.
"""

from collections.abc import Callable
from random import Random
from typing import TypeAlias

from monoformer.data.scenes.splits import Split, split_of
from monoformer.data.scenes.world import (
    BACKGROUNDS,
    EDGE,
    GAP,
    KINDS,
    QUADRANTS,
    SIZES,
    Kind,
    Scene,
    Thing,
    is_well_made,
)

ATTEMPTS = 60
"""Positions tried before a layout is given up; about 3 in 4 succeed."""


Allowed: TypeAlias = Callable[[tuple[Kind, ...]], bool]
"""Whether these kinds of thing may share a scene."""


def always(kinds: tuple[Kind, ...]) -> bool:
    """Every set of kinds may."""
    return True


def sample_kinds(rng: Random, count: int, *, split: Split | None, allowed: Allowed = always) -> tuple[Kind, ...]:
    """`count` kinds of thing that may share a scene of that split; None: of either."""
    while True:
        kinds = tuple(rng.choice(KINDS) for _ in range(count))
        if len({kind.name for kind in kinds}) == count and split in (None, split_of(kinds)) and allowed(kinds):
            return kinds


def sample_thing(rng: Random, kind: Kind, *, where: str) -> Thing:
    """A thing of that kind somewhere in the quadrant, its box inside the quadrant's share of the picture."""
    low, high = EDGE + SIZES[kind.size] / 2, (1 - GAP) / 2 - SIZES[kind.size] / 2
    x, y = rng.uniform(low, high), rng.uniform(low, high)
    vertical, horizontal = where.split(" ")
    return Thing(
        kind.shape,
        kind.colour,
        kind.size,
        round(1 - x if horizontal == "right" else x, 4),
        round(1 - y if vertical == "bottom" else y, 4),
    )


def sample_scene(rng: Random, count: int, *, split: Split | None, allowed: Allowed = always) -> Scene:
    """A well-made scene of `count` things of that split; None: of either."""
    kinds = sample_kinds(rng, count, split=split, allowed=allowed)
    background = rng.choice(tuple(BACKGROUNDS))
    while True:
        places = rng.sample(QUADRANTS, count)
        scene = Scene(
            background, tuple(sample_thing(rng, kind, where=at) for kind, at in zip(kinds, places, strict=True))
        )
        if is_well_made(scene):
            return scene


def with_thing(scene: Scene, kind: Kind, *, where: str, rng: Random) -> Scene:
    """The scene and one thing more in that quadrant; raises ValueError where it cannot be well made."""
    for _ in range(ATTEMPTS):
        added = Scene(scene.background, (*scene.things, sample_thing(rng, kind, where=where)))
        if is_well_made(added):
            return added
    raise ValueError(f"a {kind.size} {kind.colour} {kind.shape} does not fit at the {where} of this scene")
