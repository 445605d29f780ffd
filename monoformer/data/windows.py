"""The global stream of documents cut into windows, each packed alone (DESIGN 4, "Order of data").

Knows nothing of ranks or batches. Invariant: the windows are a function of the source and the packing alone; every
document has its number, and those that are in no row are counted.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from monoformer.data.skipped import BadDocument, Tally
from monoformer.data.source import Source
from monoformer.document import Document

Packed = TypeVar("Packed")

Numbered: TypeAlias = list[tuple[int, Document]]
"""Documents with their numbers in the stream."""
Pack: TypeAlias = Callable[[Numbered], tuple[list[Packed], dict[int, BadDocument]]]
"""Packs a window's documents: its rows, and by number what is wrong with those that are in none."""


@dataclass(frozen=True)
class Position:
    """The window of the last row consumed, and how many of its rows were consumed by all ranks together."""

    source: dict[str, Any]
    document: int
    row: int
    tally: Tally
    """Of the windows before."""
    seen: Tally
    """With this window's."""


@dataclass(frozen=True)
class Window(Generic[Packed]):
    """The rows of a window, and where it begins."""

    rows: list[Packed]
    source: dict[str, Any]
    document: int
    """Number of its first document."""
    tally: Tally
    """Of the windows before."""
    seen: Tally
    """With this window's."""

    def after(self, row: int) -> Position:
        """The position after so many of its rows."""
        return Position(self.source, self.document, row, self.tally, self.seen)


@dataclass(frozen=True)
class Windows(Generic[Packed]):
    """The stream cut into windows, each packed alone."""

    source: Source
    pack: Pack[Packed]
    size: int
    skip_limit: float

    def read(self, start: Position, stop: threading.Event) -> Iterator[Window[Packed]]:
        """The windows from the one that a position is in, until told to stop."""
        self.source.load_state_dict(copy.deepcopy(start.source))
        documents = iter(self.source)
        number, tally = start.document, start.tally
        while not stop.is_set():
            state = copy.deepcopy(self.source.state_dict())
            packed = self._pack(documents, number, tally, stop)
            if packed is None:
                return
            rows, seen = packed
            yield Window(rows, state, number, tally, seen)
            number, tally = number + self.size, seen

    def _pack(
        self, documents: Iterator[Document | BadDocument], number: int, tally: Tally, stop: threading.Event
    ) -> tuple[list[Packed], Tally] | None:
        """Rows of the window that begins with document `number`, and the tally with it; None: told to stop."""
        bad: dict[int, BadDocument] = {}
        good: Numbered = []
        for at in range(number, number + self.size):
            if stop.is_set():
                return None
            document = next(documents, None)
            if document is None:
                raise ValueError(f"the source ended after document {at}, but must be endless")
            if isinstance(document, BadDocument):
                bad[at] = document
            else:
                good.append((at, document))
        rows, refused = self.pack(good)
        bad |= refused
        tally = Tally(tally.state_dict())
        for at in range(number, number + self.size):
            tally.add(self.source.origin(at), at, bad.get(at))
        tally.check(self.skip_limit, self.source.origin)
        return rows, tally
