"""The global stream of documents -> batches of packed rows, read ahead in threads, with exact resume.

The stream is cut into windows, each packed alone; rows run on across windows and are dealt to ranks in order
(DESIGN 4, "Order of data"). A rank reads the pictures of its own rows alone. Documents that cannot be used are left
out and counted: those that the source or packing refuses before rows are made, those whose pictures turn out to be
broken when their row is read. Knows nothing of tokens: packing, reading and collating are functions it is given.
Invariant: the state counts what the consumer received, never what was read ahead, and does not depend on ranks or
`rows`.
"""

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Generic, TypeAlias, TypeVar

from monoformer.data.ahead import Ahead, in_order
from monoformer.data.skipped import BadDocument, Tally
from monoformer.data.source import Source
from monoformer.data.windows import Pack, Packed, Position, Window, Windows

Row = TypeVar("Row")
Batch = TypeVar("Batch")

Read: TypeAlias = Callable[[Packed], tuple[Row, dict[int, BadDocument]]]
"""Lays a row out and reads its pictures: without the documents that cannot be used, and by number what is wrong with
them.
"""


def as_it_is(row: Any) -> tuple[Any, dict[int, BadDocument]]:
    """Reads nothing."""
    return row, {}


MOST_EMPTY_WINDOWS = 100
"""So many windows without one row mean that packing refuses every document."""


class Loader(Generic[Batch]):
    """An endless iterator of this rank's batches. It owns the source: nobody else may read it meanwhile.

    `pack` gets the numbered documents of a window and returns its rows; `read` makes of one what is collated, in
    `readers` threads; `collate` makes a batch of `rows` rows. All run in threads unless `prefetch` is 0: one window and
    `prefetch` batches are ready before they are asked for. All ranks pack the same windows, and read and collate their
    own rows. A source of which more than the share `skip_limit` is skipped ends the stream with a ValueError.
    """

    def __init__(
        self,
        source: Source,
        pack: Pack[Packed],
        collate: Callable[[list[Row]], Batch],
        *,
        read: Read[Packed, Row] = as_it_is,
        window: int,
        rows: int,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 2,
        readers: int = 1,
        skip_limit: float = 0.01,
    ) -> None:
        if window < 1 or rows < 1 or prefetch < 0 or not 0 <= rank < world:
            raise ValueError(
                f"a loader needs window >= 1, rows >= 1, prefetch >= 0 and 0 <= rank < world, but has window {window}, "
                f"rows {rows}, prefetch {prefetch}, rank {rank}, world {world}"
            )
        self._windows = Windows(source, pack, window, skip_limit)
        self._dealer = _Dealer(read, collate, rows, rank, world, readers)
        self._prefetch = prefetch
        self._late = Tally()
        self.found: dict[int, BadDocument] = {}
        """What this rank found wrong in its rows, by number of the document, since `note` was called."""
        self._position = Position(copy.deepcopy(source.state_dict()), 0, 0, Tally(), Tally())
        self._reader: _Reader[Batch] | None = None
        self._closed = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError("this loader is closed; make a new one and load its state")
        if self._reader is None:
            self._reader = _Reader(self._windows, self._dealer, self._position, prefetch=self._prefetch)
            weakref.finalize(self, self._reader.stop.set)
        batch, self._position, found = self._reader.read()
        self.found |= found
        return batch

    def note(self, found: Mapping[int, BadDocument]) -> None:
        """Count what all ranks `found` in their rows; all of them note the same.

        Raises ValueError where too much of a source cannot be used.
        """
        for number in sorted(found):
            self._late.skip(self._windows.source.origin(number), number, found[number])
        self.found = {}
        self.skipped.check(self._windows.skip_limit, self._windows.source.origin)

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is: the window's source state, the number of its first document, its rows consumed, what
        was skipped before that window, and what was noted of the rows.
        """
        position = self._position
        place = {"source": copy.deepcopy(position.source), "document": position.document, "row": position.row}
        return {**place, "skipped": position.tally.state_dict(), "late": self._late.state_dict()}

    @property
    def skipped(self) -> Tally:
        """What was skipped up to the window that the consumer is in, that window included, and in the rows noted."""
        return self._position.seen.plus(self._late)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` gave, with any number of ranks; what was read ahead is dropped."""
        try:
            tally, late = Tally(state.get("skipped")), Tally(state.get("late"))  # older states have none
            place = copy.deepcopy(dict(state["source"])), int(state["document"]), int(state["row"])
            position = Position(*place, tally, tally)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a loader's state holds source, document and row, but this is {state}") from error
        self._end_reader()
        self._position, self._late, self.found = position, late, {}

    def close(self) -> None:
        """Stop reading ahead; waits for what is in progress. The state stays readable."""
        self._closed = True
        self._end_reader()

    def _end_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __enter__(self) -> "Loader[Batch]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Dealer(Generic[Packed, Row, Batch]):
    """Batches of the windows' rows; holds no position itself."""

    read: Read[Packed, Row]
    collate: Callable[[list[Row]], Batch]
    rows: int
    rank: int
    world: int
    readers: int

    def batches(
        self, windows: Iterator[Window[Packed]], skip: int, stop: threading.Event
    ) -> Iterator[tuple[Batch, Position, dict[int, BadDocument]]]:
        """This rank's batches, each with the position after it and what was found wrong in it; the first window's first
        `skip` rows are left out.
        """
        own = self._own(self._row_stream(windows, skip))
        with closing(in_order(lambda entry: (*self.read(entry[0]), entry[1]), own, readers=self.readers)) as read:
            while True:
                block = list(islice(read, self.rows))
                if stop.is_set():
                    return
                found = {number: bad for _, wrong, _ in block for number, bad in wrong.items()}
                yield self.collate([row for row, _, _ in block]), block[-1][2], found

    def _own(self, rows: Iterator[tuple[Packed, Position]]) -> Iterator[tuple[Packed, Position]]:
        """This rank's rows, each with the position after the rows that all ranks read together."""
        own = slice(self.rank * self.rows, (self.rank + 1) * self.rows)
        while len(block := list(islice(rows, self.world * self.rows))) == self.world * self.rows:
            yield from ((row, block[-1][1]) for row, _ in block[own])

    def _row_stream(self, windows: Iterator[Window[Packed]], skip: int) -> Iterator[tuple[Packed, Position]]:
        """All ranks' rows in order, each with the position after it."""
        empty = 0
        for window in windows:
            if skip > len(window.rows):
                raise ValueError(
                    f"the saved state is row {skip} of a window that now has {len(window.rows)} rows; resume with the "
                    f"data, window and packing that it was saved with"
                )
            for place in range(skip, len(window.rows)):
                yield window.rows[place], window.after(place + 1)
            skip, empty = 0, 0 if window.rows else empty + 1
            if empty == MOST_EMPTY_WINDOWS:
                raise ValueError(
                    f"packing made no row of {empty} windows in turn; raise sequence.row or give smaller documents"
                )


class _Reader(Generic[Batch]):
    """One pass over the batches. Where `prefetch` is above 0, one thread reads and packs a window while the rows of the
    one before are dealt, and another has `prefetch` batches ready.

    The threads do not know the loader, so a forgotten loader is collected and stops them.
    """

    def __init__(
        self, windows: Windows[Any], dealer: _Dealer[Any, Any, Batch], start: Position, *, prefetch: int
    ) -> None:
        self.stop = threading.Event()
        self._windows = Ahead(windows.read(start, self.stop), count=min(prefetch, 1), stop=self.stop)
        batches = dealer.batches(self._windows, start.row, self.stop)
        self._batches = Ahead(batches, count=prefetch, stop=self.stop)

    def read(self) -> tuple[Batch, Position, dict[int, BadDocument]]:
        """The next batch, the position after it, and what was found wrong in it; raises what reading ran into, each
        time it is asked.
        """
        return next(self._batches)

    def close(self) -> None:
        """Stop the threads and wait for them: they must not read the source any more."""
        self.stop.set()
        self._windows.join()
        self._batches.join()
