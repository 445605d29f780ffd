"""Edits: instructions to change a scene, exact both ways.

    recolour := "make the" name colour                        "make the red circle blue"
    reshape  := "turn the" name "into a" shape                "turn the red circle into a square"
    move     := "move the" name "to the" quadrant             "move the red circle to the top left"
    add      := "add a" kind relation "the" name              "add a small green ring below the red circle"
    remove   := "remove the" name                             "remove the red circle"

Everything that an instruction does not name stays as and where it is. `apply` raises ValueError if the instruction
makes no sense in the scene: the thing is missing, nothing would change, or the result would not be well made. Knows
nothing of pixels. Invariant: `read_instruction(i.text) == i`. The grammar is frozen once results exist.
"""

import re
from dataclasses import dataclass, replace
from random import Random
from typing import Final, TypeAlias

from monoformer.data.scenes.language import KIND_PATTERN, NAME_PATTERN, RELATION_PATTERN, options, say_kind, say_name
from monoformer.data.scenes.layout import with_thing
from monoformer.data.scenes.world import (
    COLOURS,
    KINDS,
    QUADRANTS,
    RELATIONS,
    SHAPES,
    Kind,
    Name,
    Scene,
    Thing,
    is_well_made,
    quadrant,
)


@dataclass(frozen=True)
class Recolour:
    """Give a thing another colour."""

    name: Name
    colour: str

    @property
    def text(self) -> str:
        """The instruction in words."""
        return f"make the {say_name(self.name)} {self.colour}"

    def apply(self, scene: Scene, rng: Random) -> Scene:
        """The scene afterwards."""
        thing = _find(scene, self.name)
        if thing.colour == self.colour:
            raise ValueError(f"the {say_name(self.name)} is {self.colour} already")
        return _checked(_swapped(scene, thing, replace(thing, colour=self.colour)))


@dataclass(frozen=True)
class Reshape:
    """Give a thing another shape, of the same size and in the same place."""

    name: Name
    shape: str

    @property
    def text(self) -> str:
        """The instruction in words."""
        return f"turn the {say_name(self.name)} into a {self.shape}"

    def apply(self, scene: Scene, rng: Random) -> Scene:
        """The scene afterwards."""
        thing = _find(scene, self.name)
        if thing.shape == self.shape:
            raise ValueError(f"the {say_name(self.name)} is a {self.shape} already")
        return _checked(_swapped(scene, thing, replace(thing, shape=self.shape)))


@dataclass(frozen=True)
class Move:
    """Bring a thing into another, free quadrant."""

    name: Name
    where: str

    @property
    def text(self) -> str:
        """The instruction in words."""
        return f"move the {say_name(self.name)} to the {self.where}"

    def apply(self, scene: Scene, rng: Random) -> Scene:
        """The scene afterwards; `rng` chooses the place within the quadrant."""
        thing = _find(scene, self.name)
        if self.where in {quadrant(other) for other in scene.things}:
            raise ValueError(f"the {self.where} is taken")
        return with_thing(_swapped(scene, thing), thing.kind, where=self.where, rng=rng)


@dataclass(frozen=True)
class Add:
    """Put one thing more next to a thing that is there."""

    kind: Kind
    relation: str
    name: Name
    """The thing that the new one is `relation` (of)."""

    @property
    def text(self) -> str:
        """The instruction in words."""
        return f"add a {say_kind(self.kind)} {self.relation} the {say_name(self.name)}"

    def apply(self, scene: Scene, rng: Random) -> Scene:
        """The scene afterwards; `rng` chooses the place within the quadrant on that side."""
        vertical, horizontal = quadrant(_find(scene, self.name)).split(" ")
        match self.relation:
            case "left of" | "right of":
                beside = "left" if self.relation == "left of" else "right"
                is_free, where = beside != horizontal, f"{vertical} {beside}"
            case _:
                beside = "top" if self.relation == "above" else "bottom"
                is_free, where = beside != vertical, f"{beside} {horizontal}"
        if not is_free or where in {quadrant(other) for other in scene.things}:
            raise ValueError(f"there is no room {self.relation} the {say_name(self.name)}")
        return with_thing(scene, self.kind, where=where, rng=rng)


@dataclass(frozen=True)
class Remove:
    """Take a thing away; the last one stays."""

    name: Name

    @property
    def text(self) -> str:
        """The instruction in words."""
        return f"remove the {say_name(self.name)}"

    def apply(self, scene: Scene, rng: Random) -> Scene:
        """The scene afterwards."""
        return _checked(_swapped(scene, _find(scene, self.name)))


Instruction: TypeAlias = Recolour | Reshape | Move | Add | Remove

VERBS: Final = ("recolour", "reshape", "move", "add", "remove")

_FORMS: Final = {
    "recolour": re.compile(f"make the {NAME_PATTERN} {options(COLOURS)}"),
    "reshape": re.compile(f"turn the {NAME_PATTERN} into a {options(SHAPES)}"),
    "move": re.compile(f"move the {NAME_PATTERN} to the {options(QUADRANTS)}"),
    "add": re.compile(f"add a {KIND_PATTERN} {RELATION_PATTERN} the {NAME_PATTERN}"),
    "remove": re.compile(f"remove the {NAME_PATTERN}"),
}


def read_instruction(text: str) -> Instruction | None:
    """The instruction that a text gives; None for any other text."""
    for verb, form in _FORMS.items():
        if found := form.fullmatch(text):
            words = found.groups()
            match verb:
                case "recolour":
                    return Recolour(Name(*words[:2]), words[2])
                case "reshape":
                    return Reshape(Name(*words[:2]), words[2])
                case "move":
                    return Move(Name(*words[:2]), words[2])
                case "add":
                    return Add(Kind(*words[:3]), words[3], Name(*words[4:]))
                case _:
                    return Remove(Name(*words))
    return None


def sample_instruction(scene: Scene, verb: str, rng: Random) -> Instruction:
    """An instruction of that verb about a thing of the scene; not always one that `apply` accepts."""
    name = rng.choice(scene.things).name
    match verb:
        case "recolour":
            return Recolour(name, rng.choice(tuple(COLOURS)))
        case "reshape":
            return Reshape(name, rng.choice(SHAPES))
        case "move":
            return Move(name, rng.choice(QUADRANTS))
        case "add":
            return Add(rng.choice(KINDS), rng.choice(RELATIONS), name)
        case "remove":
            return Remove(name)
        case _:
            raise ValueError(f"verb {verb!r} is not one of {', '.join(VERBS)}")


def _find(scene: Scene, name: Name) -> Thing:
    """The thing of that name; ValueError if there is none."""
    thing = scene.find(name)
    if thing is None:
        raise ValueError(f"there is no {say_name(name)} in the scene, or more than one")
    return thing


def _swapped(scene: Scene, thing: Thing, *new: Thing) -> Scene:
    """The scene with `new` instead of the thing."""
    return Scene(scene.background, (*(other for other in scene.things if other is not thing), *new))


def _checked(scene: Scene) -> Scene:
    """The scene; ValueError if it is not well made."""
    if not is_well_made(scene):
        raise ValueError("the edit would not leave a well-made scene")
    return scene
