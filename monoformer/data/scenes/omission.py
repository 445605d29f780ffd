"""What a run leaves out of its scenes, to be asked for later: pairs of colour and shape, and a number of things.

Knows nothing of pixels or documents. Invariant: with nothing left out everything is allowed.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from monoformer.config.spelling import hint
from monoformer.data.scenes.language import say_name
from monoformer.data.scenes.world import COLOURS, SHAPES, Kind, Name

LeftOut: TypeAlias = Literal["avoided", "pairs", "objects"]
"""Scenes avoid all of it; or each holds a pair that was left out; or each has the number that was left out."""


class LeftOutThings:
    """Which scenes, and which words, are wanted."""

    def __init__(self, pairs: Sequence[str], number: int, wanted: LeftOut) -> None:
        """`pairs` such as 'red circle'; ValueError for one that this world does not have."""
        self.names = frozenset(read_name(pair) for pair in pairs)
        self.number, self.wanted = number, wanted
        if (wanted == "pairs" and not self.names) or (wanted == "objects" and not number):
            option = "data.left_out" if wanted == "pairs" else "data.left_out_objects"
            raise ValueError(f"nothing was left out of these scenes: {option} is empty")

    def allow(self, kinds: Iterable[Kind]) -> bool:
        """Whether a scene may hold these things."""
        if not self.names:
            return True
        return any(kind.name in self.names for kind in kinds) == (self.wanted == "pairs")

    def allows_number(self, count: int) -> bool:
        """Whether a scene may have so many things."""
        return not self.number or (count == self.number) == (self.wanted == "objects")

    def named_in(self, text: str) -> bool:
        """Whether a text names a pair that documents avoid."""
        return self.wanted == "avoided" and any(say_name(name) in text for name in self.names)


def read_name(pair: str) -> Name:
    """'red circle' as a name; ValueError with the nearest words for any other."""
    words = pair.split()
    if len(words) != 2:
        raise ValueError(f"data.left_out holds {pair!r}; a pair is a colour and a shape, such as 'red circle'")
    for word, known, what in zip(words, (tuple(COLOURS), SHAPES), ("colour", "shape"), strict=True):
        if word not in known:
            near = hint(word, known, otherwise=f"{what}s are {', '.join(known)}")
            raise ValueError(f"data.left_out holds {pair!r}, but there is no {what} {word!r}; {near}")
    return Name(*words)
