"""The loader's laws: exact resume at every batch, ranks that share one stream, and a state blind to reading ahead."""

import gc
import json
import threading
import time
from collections.abc import Callable
from itertools import islice

import pytest

from monoformer.data.loader import Loader
from monoformer.data.source import Indexed, Mixture, Source
from monoformer.document import Document, Text

Row = tuple[int, ...]
Batch = list[Row]


def source() -> Source:
    """Two sources whose documents have 1 to 5 characters."""
    return Mixture(
        [
            Indexed(lambda i: Document((Text("a" * (1 + i * i % 5)),))),
            Indexed(lambda i: Document((Text("b" * (1 + i % 3)),))),
        ],
        weights=[2.0, 1.0],
        seed=5,
    )


def pack(documents: list[tuple[int, Document]]) -> list[Row]:
    """Greedy rows of at most 7 characters: lists of (document number, its text) as one tuple."""
    rows: list[list[int]] = [[]]
    filled = 0
    for number, document in documents:
        (segment,) = document.segments
        assert isinstance(segment, Text)
        if filled + len(segment.text) > 7:
            rows.append([])
            filled = 0
        rows[-1] += [number, ord(segment.text[0]) * 100 + len(segment.text)]
        filled += len(segment.text)
    return [tuple(row) for row in rows]


def loader(*, world: int = 1, rank: int = 0, rows: int = 2, prefetch: int = 2, window: int = 8) -> Loader[Row, Batch]:
    return Loader(source(), pack, list, window=window, rows=rows, rank=rank, world=world, prefetch=prefetch)


def take(batches: Loader[Row, Batch], count: int) -> list[Batch]:
    with batches:
        return list(islice(batches, count))


def test_the_rows_are_the_windows_packed_alone_one_after_another() -> None:
    documents = list(enumerate(islice(source(), 8 * 12)))
    expected = [row for start in range(0, len(documents), 8) for row in pack(documents[start : start + 8])]
    rows = [row for batch in take(loader(rows=3), len(expected) // 3) for row in batch]
    assert rows == expected[: len(rows)]
    assert any(len(pack(documents[start : start + 8])) % 3 for start in range(0, 96, 8)), "batches must cross windows"


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_resumes_exactly_at_every_batch(prefetch: int) -> None:
    expected = take(loader(rows=3), 24)
    documents = []
    with loader(rows=3, prefetch=prefetch) as reader:
        for number in range(20):
            state = json.loads(json.dumps(reader.state_dict()))
            documents.append(state["document"])
            with loader(rows=3, prefetch=prefetch) as resumed:
                resumed.load_state_dict(state)
                assert list(islice(resumed, 4)) == expected[number : number + 4]
            assert next(reader) == expected[number]
    assert len(set(documents)) > 3, "several windows"


def test_a_used_loader_goes_back() -> None:
    with loader() as reader:
        first = list(islice(reader, 3))
        state = reader.state_dict()
        second = list(islice(reader, 9))
        reader.load_state_dict(state)
        assert list(islice(reader, 9)) == second
        reader.load_state_dict(loader().state_dict())
        assert list(islice(reader, 3)) == first


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_read_what_one_reads(world: int) -> None:
    alone = [row for batch in take(loader(rows=2 * world), 10) for row in batch]
    ranks = [take(loader(rows=2, world=world, rank=rank), 10) for rank in range(world)]
    assert [row for step in zip(*ranks, strict=True) for batch in step for row in batch] == alone


def test_the_state_is_the_same_on_every_rank_and_serves_another_number_of_ranks() -> None:
    with loader(rows=2, world=2, rank=0) as first, loader(rows=2, world=2, rank=1, prefetch=0) as second:
        for _ in range(7):
            next(first), next(second)
            assert first.state_dict() == second.state_dict()
        state = second.state_dict()
    rows = [row for batch in take(loader(rows=1), 40) for row in batch]
    with loader(rows=1) as alone:
        alone.load_state_dict(state)
        assert [row for batch in islice(alone, 12) for row in batch] == rows[28:]


def test_reading_ahead_does_not_change_the_state() -> None:
    states = []
    for prefetch in (0, 1, 4):
        with loader(prefetch=prefetch) as reader:
            seen = [reader.state_dict()]
            for _ in range(10):
                next(reader)
                time.sleep(0.002)  # let the thread run ahead
                seen.append(reader.state_dict())
        states.append(seen)
    assert states[0] == states[1] == states[2]


def failing(number: int) -> Source:
    def document(index: int) -> Document:
        if index == number:
            raise ValueError(f"document {number} is broken")
        return Document((Text("abc"),))

    return Indexed(document)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_failure_reaches_the_consumer_after_the_batches_before_it(prefetch: int) -> None:
    with Loader(failing(9), pack, list, window=4, rows=1, prefetch=prefetch) as reader:
        assert len([next(reader), next(reader), next(reader), next(reader)]) == 4
        state = reader.state_dict()
        for _ in range(2):
            with pytest.raises(ValueError, match="document 9 is broken"):
                next(reader)
        assert reader.state_dict() == state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Loader(source(), lambda documents: [], list, window=4, rows=1), "packing made no row"),
        (lambda: Loader(source(), pack, list, window=0, rows=1), "window 0"),
        (lambda: Loader(source(), pack, list, window=4, rows=1, rank=2, world=2), "rank 2"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], Loader[Row, Batch]], message: str) -> None:
    with pytest.raises(ValueError, match=message), make() as reader:
        next(reader)


def test_states_that_do_not_fit_are_refused() -> None:
    with loader() as reader:
        with pytest.raises(ValueError, match="holds source, document and row"):
            reader.load_state_dict({"row": 1})
        reader.load_state_dict({**reader.state_dict(), "row": 1000})
        with pytest.raises(ValueError, match="row 1000 of a window"):
            next(reader)


def alive() -> int:
    return sum(thread.name == "loader" for thread in threading.enumerate())


def test_the_thread_ends_with_the_loader() -> None:
    before = alive()
    reader = loader(prefetch=1)
    next(reader)
    assert alive() == before + 1
    reader.close()
    assert alive() == before
    with pytest.raises(ValueError, match="closed"):
        next(reader)
    assert reader.state_dict()["row"] > 0
    forgotten = loader(prefetch=1)
    next(forgotten)
    del forgotten
    gc.collect()
    deadline = time.monotonic() + 5
    while alive() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert alive() == before
