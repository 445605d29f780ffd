"""Little stories: text alone, in the words of the drawn world.

Three to six sentences about people and their coloured things. What a story says of a thing stays true: it keeps its
colour until it is painted, its owner until it is given, its place until it is taken. Capitals and full stops as in
any English text. Invariant: a story depends on the generator's state alone.
"""

from collections.abc import Callable
from random import Random
from typing import Final

from monoformer.data.scenes.language import say_kind, say_name
from monoformer.data.scenes.world import COLOURS, KINDS, OPPOSITE, RELATIONS, Kind

SHE: Final = ("Ada", "Bea", "Clara", "Dora", "Ella", "Fay", "Gina", "Hana", "Ida", "June", "Kim", "Lily", "Mia", "Nora")
HE: Final = ("Abe", "Ben", "Carl", "Dan", "Eli", "Finn", "Gus", "Hugo", "Ivan", "Jack", "Karl", "Leo", "Max", "Ned")
PLACES: Final = ("kitchen", "garden", "barn", "attic", "hall", "school", "park", "forest", "cellar", "shop")
ANIMALS: Final = ("cat", "dog", "bird", "fox", "goat", "mouse")
TIMES: Final = ("One morning", "One evening", "One day", "On Monday", "On Friday", "At noon", "In the night")
HOLDERS: Final = ("box", "bag", "basket", "drawer")
NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")


def tell(rng: Random) -> str:
    """A story."""
    return " ".join(rng.choice(_PLOTS)(rng))


def _person(rng: Random) -> tuple[str, str]:
    """A name and its pronoun."""
    return (rng.choice(SHE), "she") if rng.random() < 0.5 else (rng.choice(HE), "he")


def _kinds(rng: Random, count: int) -> list[Kind]:
    """Kinds of thing that differ in colour and in shape, so that a short name is enough."""
    while True:
        kinds = [rng.choice(KINDS) for _ in range(count)]
        if len({kind.colour for kind in kinds}) == len({kind.shape for kind in kinds}) == count:
            return kinds


def _lost(rng: Random) -> list[str]:
    """A thing is taken away, looked for and found."""
    (name, pronoun), (kind,), animal = _person(rng), _kinds(rng, 1), rng.choice(ANIMALS)
    home, wrong, found = rng.sample(PLACES, 3)
    thing = say_name(kind.name)
    story = [
        f"{name} {rng.choice(('had', 'owned', 'loved'))} a {say_kind(kind)}.",
        f"{pronoun.capitalize()} {rng.choice(('kept', 'left'))} it in the {home}.",
        f"{rng.choice(TIMES)} a {animal} took the {thing} to the {found}.",
    ]
    if rng.random() < 0.6:
        story.append(f"{name} looked in the {wrong}, but the {thing} was not there.")
    story.append(f"Then {pronoun} looked in the {found} and found the {thing}.")
    if rng.random() < 0.5:
        story.append(
            f"{name} {rng.choice(('thanked', 'scolded', 'followed'))} the {animal} and took it back to the {home}."
        )
    return story


def _trade(rng: Random) -> list[str]:
    """Two people trade their things."""
    (first, _), (second, pronoun) = _person(rng), _person(rng)
    while second == first:
        second, pronoun = _person(rng)
    mine, yours = _kinds(rng, 2)
    story = [f"{first} had a {say_kind(mine)}.", f"{second} had a {say_kind(yours)}."]
    if rng.random() < 0.5:
        story.append(f"{rng.choice(TIMES)} they met in the {rng.choice(PLACES)}.")
    story.append(
        f"{first} gave {second} the {say_name(mine.name)}, and {pronoun} gave {first} the {say_name(yours.name)}."
    )
    story.append(f"Now {first} has the {yours.shape} and {second} has the {mine.shape}.")
    if rng.random() < 0.5:
        story.append(f"Both like what is {rng.choice((mine, yours)).colour}.")
    return story


def _paint(rng: Random) -> list[str]:
    """A thing is painted in another colour."""
    (name, pronoun), (kind,) = _person(rng), _kinds(rng, 1)
    colour = rng.choice([colour for colour in COLOURS if colour != kind.colour])
    story = [
        f"{name} found a {say_kind(kind)} in the {rng.choice(PLACES)}.",
        f"But {name} wanted a {colour} {kind.shape}.",
        f"So {pronoun} took {colour} paint and painted the {kind.shape}.",
        f"Now the {kind.shape} is {colour} and no longer {kind.colour}.",
    ]
    if rng.random() < 0.5:
        story.append(f"It is still {kind.size}.")
    if rng.random() < 0.5:
        story.append(f"{name} put the {colour} {kind.shape} in a {rng.choice(HOLDERS)}.")
    return story


def _arrange(rng: Random) -> list[str]:
    """Things are laid beside each other, and the relation is said the other way round."""
    (name, pronoun), (first, second), place = _person(rng), _kinds(rng, 2), rng.choice(PLACES)
    said = rng.choice(RELATIONS)
    story = [
        f"{name} was in the {place} with a {say_kind(first)} and a {say_kind(second)}.",
        f"{pronoun.capitalize()} put the {first.shape} {said} the {second.shape}.",
        f"So the {second.shape} was {OPPOSITE[said]} the {first.shape}.",
    ]
    if rng.random() < 0.7:
        story.append(f"{rng.choice(TIMES)} a {rng.choice(ANIMALS)} came and took the {say_name(first.name)} away.")
        story.append(f"Only the {say_name(second.name)} was left in the {place}.")
    return story


def _count(rng: Random) -> list[str]:
    """Things are counted, and some are added or given away."""
    (name, pronoun), (kind,) = _person(rng), _kinds(rng, 1)
    plural = f"{kind.colour} {kind.shape}{'es' if kind.shape == 'cross' else 's'}"
    start, change = rng.randint(4, 6), rng.randint(1, 2)
    gains = rng.random() < 0.5
    moved = f"{NUMBERS[change]} {'more' if gains else 'of them'}"
    deed = rng.choice(("found", "bought", "made")) if gains else rng.choice(("lost", "sold", "gave away"))
    story = [
        f"{name} had {NUMBERS[start]} {plural} in a {rng.choice(HOLDERS)}.",
        f"{rng.choice(TIMES)} {pronoun} {deed} {moved}.",
        f"Then {pronoun} had {NUMBERS[start + change if gains else start - change]} {plural}.",
    ]
    if rng.random() < 0.5:
        story.append(f"All of them were {kind.size}.")
    return story


def _fit(rng: Random) -> list[str]:
    """What is large does not go into a small holder; what is small does."""
    (name, pronoun), (first, second), holder = _person(rng), _kinds(rng, 2), rng.choice(HOLDERS)
    story = [f"{name} had a small {holder}.", f"{pronoun.capitalize()} also had a {say_kind(first)}."]
    if first.size == "large":
        story.append(f"The {first.shape} did not fit in the {holder}, because it was too large.")
    else:
        story.append(f"The {first.shape} was small, so it fit in the {holder}.")
    story.append(f"Then {name} tried a {say_kind(second)}.")
    fits = second.size == "small"
    story.append(f"It {'fit' if fits else 'did not fit'}, because it was {'' if fits else 'too '}{second.size}.")
    if rng.random() < 0.5:
        inside = [kind.shape for kind in (first, second) if kind.size == "small"]
        held = f"the {' and the '.join(inside)}" if inside else "nothing"
        story.append(f"In the end there was {held} in the {holder}.")
    return story


_PLOTS: Final[tuple[Callable[[Random], list[str]], ...]] = (_lost, _trade, _paint, _arrange, _count, _fit)
