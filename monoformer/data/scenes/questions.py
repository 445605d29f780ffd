"""Questions about scenes with short exact answers.

    "what colour is the circle?"  colour            "how many things are there?"     "one" | "two" | "three"
    "what shape is the red thing?"  shape           "how many circles are there?"    "zero" ... "three"
    "what size is the red circle?"  size            "is there a blue square?"        "yes" | "no"
    "what colour is the background?"  background    "is the red circle left of the blue square?"  "yes" | "no"
    "where is the red circle?"  quadrant

A question that names a thing is asked only where exactly one thing answers to the name, a relation only where some
relation is clear. Yes and no are equally likely. Knows nothing of pixels. Invariant: `answer(question, scene)` is the
answer that `ask` gave. The forms are frozen once results exist.
"""

import re
from random import Random
from typing import Final, get_args

from monoformer.config.data import QuestionForm
from monoformer.data.scenes.language import NAME_PATTERN, RELATION_PATTERN, options, say_name
from monoformer.data.scenes.world import (
    COLOURS,
    HORIZONTAL,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    Name,
    Scene,
    clear_relation,
    quadrant,
    relation,
)

NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six")
PLURALS: Final = {
    "circles": "circle",
    "squares": "square",
    "triangles": "triangle",
    "crosses": "cross",
    "rings": "ring",
}
FORMS: Final[tuple[QuestionForm, ...]] = get_args(QuestionForm)

_COLOUR = re.compile(f"what colour is the {options(SHAPES)}\\?")
_SHAPE = re.compile(f"what shape is the {options(COLOURS)} thing\\?")
_SIZE = re.compile(f"what size is the {NAME_PATTERN}\\?")
_WHERE = re.compile(f"where is the {NAME_PATTERN}\\?")
_COUNT = re.compile(f"how many {options(PLURALS)} are there\\?")
_EXISTS = re.compile(f"is there a {NAME_PATTERN}\\?")
_RELATION = re.compile(f"is the {NAME_PATTERN} {RELATION_PATTERN} the {NAME_PATTERN}\\?")


def ask(scene: Scene, form: QuestionForm, rng: Random) -> tuple[str, str] | None:
    """A question of that form about a made scene, and its answer; None if this try at it found no clear one."""
    question = _sample(scene, form, rng)
    reply = None if question is None else answer(question, scene)
    return None if question is None or reply is None else (question, reply)


def answer(question: str, scene: Scene) -> str | None:
    """The right answer; None if the text is no question of these forms or the scene does not settle it."""
    if question == "what colour is the background?":
        return scene.background
    if question == "how many things are there?":
        return _number(len(scene.things))
    if found := _COUNT.fullmatch(question):
        return _number(sum(thing.shape == PLURALS[found[1]] for thing in scene.things))
    if found := _EXISTS.fullmatch(question):
        return _yes(any(thing.name == Name(found[1], found[2]) for thing in scene.things))
    if found := _COLOUR.fullmatch(question):
        colours = [thing.colour for thing in scene.things if thing.shape == found[1]]
        return colours[0] if len(colours) == 1 else None
    if found := _SHAPE.fullmatch(question):
        shapes = [thing.shape for thing in scene.things if thing.colour == found[1]]
        return shapes[0] if len(shapes) == 1 else None
    if found := _SIZE.fullmatch(question):
        thing = scene.find(Name(found[1], found[2]))
        return None if thing is None else thing.size
    if found := _WHERE.fullmatch(question):
        thing = scene.find(Name(found[1], found[2]))
        return None if thing is None else quadrant(thing)
    if found := _RELATION.fullmatch(question):
        thing, other = scene.find(Name(found[1], found[2])), scene.find(Name(found[4], found[5]))
        true = None if thing is None or other is None or thing is other else relation(thing, other)
        return None if true is None else _yes(true == found[3])
    return None


def _number(count: int) -> str | None:
    """The number in words, or None beyond the words we have."""
    return NUMBERS[count] if count < len(NUMBERS) else None


def _yes(truth: bool) -> str:
    """The truth as "yes" or "no"."""
    return "yes" if truth else "no"


def _sample(scene: Scene, form: QuestionForm, rng: Random) -> str | None:
    """A question of that form; None if this scene has no clear one."""
    thing = rng.choice(scene.things)
    match form:
        case "colour":
            return f"what colour is the {thing.shape}?"
        case "shape":
            return f"what shape is the {thing.colour} thing?"
        case "size":
            return f"what size is the {say_name(thing.name)}?"
        case "background":
            return "what colour is the background?"
        case "where":
            return f"where is the {say_name(thing.name)}?"
        case "things":
            return "how many things are there?"
        case "count":
            return f"how many {rng.choice(tuple(PLURALS))} are there?"
        case "exists":
            return f"is there a {say_name(thing.name if rng.random() < 0.5 else _absent(scene, rng))}?"
        case _:
            return _sample_relation(scene, rng)


def _absent(scene: Scene, rng: Random) -> Name:
    """A name of nothing in the scene, which half the time shares its colour or shape with something there."""
    names = {thing.name for thing in scene.things}
    while True:
        like = rng.choice(scene.things)
        colour = like.colour if rng.random() < 0.3 else rng.choice(tuple(COLOURS))
        shape = like.shape if rng.random() < 0.3 else rng.choice(SHAPES)
        if Name(colour, shape) not in names:
            return Name(colour, shape)


def _sample_relation(scene: Scene, rng: Random) -> str | None:
    """Is one thing left of, right of, above or below another? Half of the no-questions ask for the opposite."""
    if len(scene.things) < 2:
        return None
    thing, other = rng.sample(scene.things, 2)
    true = clear_relation(thing, other)
    if true is None:
        return None
    across = [said for said in RELATIONS if (said in HORIZONTAL) != (true in HORIZONTAL)]
    said = true if rng.random() < 0.5 else rng.choice((OPPOSITE[true], rng.choice(across)))
    return f"is the {say_name(thing.name)} {said} the {say_name(other.name)}?"
