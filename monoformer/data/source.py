"""Sources of documents: endless streams that know how far they were read.

Knows nothing of where documents come from, nor of tokens. Invariant: a state taken after n documents resumes with
document n (counting from 0), whatever was read ahead elsewhere. A document that cannot be used keeps its number: the
stream has a `BadDocument` in its place.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from monoformer.data.ahead import in_order
from monoformer.data.skipped import BadDocument, unreadable
from monoformer.document import Document
from monoformer.randomness import generator, uniform

Split: TypeAlias = Literal["train", "test"]


class Source(Protocol):
    """An endless stream of documents with a position. All iterators of one source share its position."""

    def __iter__(self) -> Iterator[Document | BadDocument]:
        """Documents from the present position on, without end; in the place of each bad one, what is wrong with it."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """All that `origin` may say."""
        ...

    def origin(self, number: int) -> str:
        """Name of the source that document `number` of the stream is from."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON can hold it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` gave."""
        ...


class Indexed:
    """A source made of a pure function of the document's number, which may raise `BadDocument`."""

    def __init__(
        self,
        document: Callable[[int], Document],
        *,
        name: str = "data",
        length: int = 0,
        readers: int = 1,
        later: bool = False,
    ) -> None:
        """`length`: how many items its documents are made of; 0: without end. `readers`: threads that make them.
        `later`: whether pictures that may be read later are left so.
        """
        self.document = document
        self.length = length
        self._name = name
        self._readers = readers
        self._later = later
        self._index = 0

    def __iter__(self) -> Iterator[Document | BadDocument]:
        while True:
            start = self._index
            made = in_order(self._read, count(start), readers=self._readers)
            for index, document in zip(count(start), made, strict=False):
                if index != self._index:  # somebody went elsewhere, or reads another iterator of this source
                    break
                self._index += 1
                yield document

    @property
    def names(self) -> tuple[str, ...]:
        """The name it was given."""
        return (self._name,)

    def origin(self, number: int) -> str:
        """The name it was given."""
        return self._name

    def _read(self, index: int) -> Document | BadDocument:
        try:
            document = self.document(index)
            return document if self._later else document.read()
        except BadDocument as bad:
            return bad
        except Exception as error:
            return unreadable(error, name=f"document {index} of {self._name}")

    def state_dict(self) -> dict[str, Any]:
        """{"index": number of the next document}."""
        return {"index": self._index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` gave; ValueError for anything else."""
        self._index = _count(state, "index")


class Mixture:
    """Several sources, drawn from by weight; the source of document n depends on (seed, n) alone."""

    def __init__(self, sources: Sequence[Source], *, weights: Sequence[float], seed: int) -> None:
        if not sources or len(sources) != len(weights) or min(weights) <= 0:
            raise ValueError(
                f"a mixture needs a weight above 0 for each source, but has {len(sources)} sources, weights {weights}"
            )
        self._sources = tuple(sources)
        self._weights = tuple(weights)
        self._seed = seed
        self._number = 0

    def __iter__(self) -> Iterator[Document | BadDocument]:
        iterators = [iter(source) for source in self._sources]
        while True:
            document = next(iterators[self._place(self._number)])
            self._number += 1
            yield document

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all its sources."""
        return tuple(name for source in self._sources for name in source.names)

    def origin(self, number: int) -> str:
        """Name of the one source that document `number` is drawn from."""
        return self._sources[self._place(number)].origin(number)

    def _place(self, number: int) -> int:
        return choose(self._weights, uniform(self._seed, number, "mixture"))

    def state_dict(self) -> dict[str, Any]:
        """The number of the next document and the state of every source."""
        return {"number": self._number, "sources": [source.state_dict() for source in self._sources]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` gave; ValueError where the number of sources differs."""
        number, states = _count(state, "number"), state.get("sources")
        if not isinstance(states, list) or len(states) != len(self._sources):
            raise ValueError(
                f"the saved position is of another mixture: it must hold {len(self._sources)} sources' states, "
                f"but is {state}; resume with the configuration that was saved with it"
            )
        for source, saved in zip(self._sources, states, strict=True):
            source.load_state_dict(saved)
        self._number = number


def seed_of(place: int, seed: int) -> int:
    """The seed of the source at that place in a mixture of this seed."""
    return int(uniform(seed, place, "source") * 2**31)


def usable(source: Source, count: int) -> Iterator[Document]:
    """The good ones among the next `count` documents."""
    return (document for document in islice(source, count) if not isinstance(document, BadDocument))


class Order:
    """The shuffled, endless order of a finite data set: document i is item permutation(i // length)[i % length]."""

    def __init__(self, seed: int, length: int) -> None:
        assert length > 0, "an order needs at least one item"
        self._seed = seed
        self._length = length
        self._current = (0, order(seed, 0, length))

    def item(self, index: int) -> int:
        """The item of document `index`; keeps the permutation of the epoch that was asked for last."""
        epoch, place = divmod(index, self._length)
        cached, permutation = self._current
        if cached != epoch:
            permutation = order(self._seed, epoch, self._length)
            self._current = (epoch, permutation)
        return int(permutation[place])


def order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """The permutation of `length` items in one epoch."""
    permutation = torch.randperm(length, generator=generator(seed, epoch, "order"))
    return np.asarray(permutation.numpy(), dtype=np.int64)


def choose(weights: Sequence[float], number: float) -> int:
    """The index that a number in [0, 1) falls on when the weights share the unit interval; never one of weight 0."""
    remaining = number * sum(weights)
    last = 0
    for index, weight in enumerate(weights):
        if weight > 0:
            last = index
            if remaining < weight:
                return index
            remaining -= weight
    return last


def _count(state: dict[str, Any], key: str) -> int:
    value = state.get(key)
    if not isinstance(value, int) or value < 0:
        raise ValueError(
            f"the saved position of a source must hold {key!r}, a number from 0 up, but is {state}; "
            f"resume with the configuration that was saved with it"
        )
    return value
