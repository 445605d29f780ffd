"""The loader's laws: exact resume at every batch, ranks that share one stream, and a state blind to reading ahead."""

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice

import pytest

from monoformer.data.loader import Loader, as_it_is
from monoformer.data.skipped import FEWEST, BadDocument, Tally
from monoformer.data.source import Indexed, Mixture, Source, usable
from monoformer.data.windows import Numbered
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


def pack(documents: Numbered) -> tuple[list[Row], dict[int, BadDocument]]:
    """`rows_of` the documents, but for those longer than a row."""
    long = {n: BadDocument(text_of(d), cause="longer than a row") for n, d in documents if len(text_of(d)) > 7}
    return rows_of([(n, d) for n, d in documents if n not in long]), long


def text_of(document: Document) -> str:
    (segment,) = document.segments
    assert isinstance(segment, Text)
    return segment.text


def rows_of(documents: Numbered) -> list[Row]:
    """Greedy rows of at most 7 characters: lists of (document number, its text) as one tuple."""
    rows: list[list[int]] = [[]]
    filled = 0
    for number, document in documents:
        text = text_of(document)
        if filled + len(text) > 7:
            rows.append([])
            filled = 0
        rows[-1] += [number, ord(text[0]) * 100 + len(text)]
        filled += len(text)
    return [tuple(row) for row in rows if row]


def loader(*, world: int = 1, rank: int = 0, rows: int = 2, prefetch: int = 2, window: int = 8) -> Loader[Batch]:
    return Loader(source(), pack, list, window=window, rows=rows, rank=rank, world=world, prefetch=prefetch)


def take(batches: Loader[Batch], count: int) -> list[Batch]:
    with batches:
        return list(islice(batches, count))


def test_the_rows_are_the_windows_packed_alone_one_after_another() -> None:
    documents = list(enumerate(usable(source(), 8 * 12)))
    expected = [row for start in range(0, len(documents), 8) for row in rows_of(documents[start : start + 8])]
    rows = [row for batch in take(loader(rows=3), len(expected) // 3) for row in batch]
    assert rows == expected[: len(rows)]
    assert any(len(rows_of(documents[start : start + 8])) % 3 for start in range(0, 96, 8)), (
        "batches must cross windows"
    )


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


class Failing(Indexed):
    """A source that fails itself, beyond what is wrong with a document."""

    def __init__(self, number: int) -> None:
        super().__init__(lambda index: Document((Text("abc"),)))
        self.number = number

    def __iter__(self) -> Iterator[Document | BadDocument]:
        for index, document in enumerate(super().__iter__()):
            if index == self.number:
                raise ValueError(f"document {index} is broken")
            yield document


def test_what_nobody_foresaw_in_a_document_is_a_bad_document() -> None:
    def document(index: int) -> Document:
        return Document((Text("abc"[: 1 // (index % 3)]),))

    found = list(islice(Indexed(document, name="odd"), 4))
    assert [isinstance(one, BadDocument) for one in found] == [True, False, False, True]
    assert str(found[3]).startswith("document 3 of odd cannot be read (ZeroDivisionError")


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("readers", [1, 3])
def test_a_failure_reaches_the_consumer_after_the_batches_before_it(prefetch: int, readers: int) -> None:
    with Loader(Failing(9), pack, list, window=4, rows=1, prefetch=prefetch, readers=readers) as reader:
        assert len([next(reader), next(reader), next(reader), next(reader)]) == 4
        state = reader.state_dict()
        for _ in range(2):
            with pytest.raises(ValueError, match="document 9 is broken"):
                next(reader)
        assert reader.state_dict() == state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Loader(source(), lambda documents: ([], {}), list, window=4, rows=1), "packing made no row"),
        (lambda: Loader(source(), pack, list, window=0, rows=1), "window 0"),
        (lambda: Loader(source(), pack, list, window=4, rows=1, rank=2, world=2), "rank 2"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], Loader[Batch]], message: str) -> None:
    with pytest.raises(ValueError, match=message), make() as reader:
        next(reader)


def test_states_that_do_not_fit_are_refused() -> None:
    with loader() as reader:
        with pytest.raises(ValueError, match="holds source, document and row"):
            reader.load_state_dict({"row": 1})
        reader.load_state_dict({**reader.state_dict(), "row": 1000})
        with pytest.raises(ValueError, match="row 1000 of a window"):
            next(reader)


def torn(row: Row) -> tuple[Row, dict[int, BadDocument]]:
    """A row of which every seventh document turns out to be broken when it is read."""
    pairs = list(zip(row[::2], row[1::2], strict=True))
    bad = {number: BadDocument(f"{number} is torn", cause="torn") for number, _ in pairs if number % 7 == 4}
    return tuple(value for pair in pairs if pair[0] not in bad for value in pair), bad


@pytest.mark.parametrize(("world", "readers", "prefetch"), [(1, 1, 0), (1, 3, 2), (2, 1, 2), (2, 2, 0)])
def test_what_is_found_in_rows_is_counted_with_the_rest_when_all_ranks_note_it(
    world: int, readers: int, prefetch: int
) -> None:
    expected = take(loader(rows=4), 12)
    ranks = [
        Loader(source(), pack, list, read=torn, window=8, rows=4 // world, rank=rank, world=world, readers=readers,
               prefetch=prefetch, skip_limit=0.5)
        for rank in range(world)
    ]  # fmt: skip
    for batch in expected:
        assert [row for rank in ranks for row in next(rank)] == [torn(row)[0] for row in batch]
        found = {number: bad for row in batch for number, bad in torn(row)[1].items()}
        assert {number for rank in ranks for number in rank.found} == set(found)
        for rank in ranks:
            rank.note(found)
    gone = [number for batch in expected for row in batch for number in torn(row)[1]]
    assert len(gone) > 10
    for rank in ranks:
        assert rank.skipped.total == len(gone)
        assert {(cause, count) for _, cause, count, _ in rank.skipped.entries()} >= {("torn", len(gone))}
        assert rank.skipped.read("data") == rank.state_dict()["document"] + 8
        rank.close()


def spoilt(every: int) -> Source:
    """A mixture of a good source, and one with every so many-th document broken and others too long for a row."""

    def document(index: int) -> Document:
        if index % every == 3:
            raise BadDocument(f"picture {index} is broken", cause="broken")
        return Document((Text("b" * (8 if index % every == 5 else 1 + index % 3)),))

    good = Indexed(lambda index: Document((Text("a" * (1 + index % 5)),)), name="good")
    return Mixture([good, Indexed(document, name="spoilt")], weights=[1.0, 1.0], seed=2)


def vanishing(after: int, *, later: bool) -> Source:
    """A good source, and one whose files are gone after so many documents: found when they are made, or when read."""

    def document(index: int) -> Document:
        if index >= after and not later:
            raise BadDocument(f"picture {index} is gone", cause="missing file")
        return Document((Text("b" if index < after else "c"),))

    good = Indexed(lambda index: Document((Text("a"),)), name="good")
    return Mixture([good, Indexed(document, name="mount")], weights=[1.0, 1.0], seed=2)


def read_gone(row: Row) -> tuple[Row, dict[int, BadDocument]]:
    gone = [number for number, text in zip(row[::2], row[1::2], strict=True) if text == ord("c") * 100 + 1]
    return row, {number: BadDocument("its file is gone", cause="missing file") for number in gone}


@pytest.mark.parametrize("later", [False, True])
def test_files_that_vanish_late_end_the_run_long_before_their_share_of_all_is_large(later: bool) -> None:
    read = read_gone if later else as_it_is
    with Loader(vanishing(6000, later=later), pack, list, read=read, window=64, rows=8, skip_limit=0.1) as reader:

        def train() -> None:
            for _ in range(10_000):
                next(reader)
                reader.note(dict(reader.found))

        with pytest.raises(ValueError, match=r"of the last \d+ documents of the source mount .* missing file"):
            train()
        # half of the stream's last 1,000 documents are this source's, and no more than half of these may be gone
        assert 12_000 < reader.state_dict()["document"] < 13_000
    with Loader(vanishing(600, later=later), pack, list, read=read, window=64, rows=8, skip_limit=1) as reader:
        for _ in range(60):
            next(reader)
            reader.note(dict(reader.found))


def skipping(every: int, *, limit: float = 0.5, prefetch: int = 2) -> Loader[Batch]:
    return Loader(spoilt(every), pack, list, window=8, rows=2, prefetch=prefetch, skip_limit=limit)


def test_skipped_documents_keep_their_numbers_and_are_counted_by_source_and_cause() -> None:
    stream = list(enumerate(islice(spoilt(9), 400)))
    expected = {n: text_of(d) for n, d in stream if not isinstance(d, BadDocument) and len(text_of(d)) <= 7}
    with skipping(9) as reader:
        numbers = [row[at] for batch in islice(reader, 40) for row in batch for at in range(0, len(row), 2)]
        state = reader.state_dict()
    last = state["document"]
    assert [number for number in numbers if number < last] == [number for number in expected if number < last]
    origins = [spoilt(9).origin(number) for number in range(last)]
    counted = {(source, cause): count for source, cause, count, _ in Tally(state["skipped"]).entries()}
    broken = sum(isinstance(document, BadDocument) for _, document in stream[:last])
    assert counted == {
        ("spoilt", "broken"): broken,
        ("spoilt", "longer than a row"): last - broken - len([number for number in expected if number < last]),
    }
    assert Tally(state["skipped"]).read("good") == origins.count("good") > 30
    example = state["skipped"]["spoilt"]["skipped"]["broken"]["examples"][0]
    first = next(number for number, document in stream if isinstance(document, BadDocument))
    assert example == f"document {first}: picture 3 is broken"


@pytest.mark.parametrize("prefetch", [0, 2])
def test_with_skipped_documents_it_resumes_exactly_and_goes_on_counting(prefetch: int) -> None:
    with skipping(9) as reader:
        expected = [(batch, reader.skipped.state_dict()) for batch in islice(reader, 30)]
    with skipping(9, prefetch=prefetch) as reader:
        for number in range(25):
            state = json.loads(json.dumps(reader.state_dict()))
            with skipping(9, prefetch=prefetch) as resumed:
                resumed.load_state_dict(state)
                assert [(batch, resumed.skipped.state_dict()) for batch in islice(resumed, 3)] == expected[
                    number : number + 3
                ]
            next(reader)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_too_many_skipped_documents_of_one_source_end_the_run(prefetch: int) -> None:
    with skipping(9, limit=0.25, prefetch=prefetch) as reader:  # two in nine are skipped
        assert len(list(islice(reader, 100))) == 100
        assert reader.skipped.total > 2 * FEWEST
    with skipping(9, limit=0.1, prefetch=prefetch) as reader:
        with pytest.raises(ValueError, match=r"of \d+ documents of the source spoilt cannot be used.*picture 3 is"):
            list(islice(reader, 100))
        assert FEWEST - 4 <= reader.skipped.total < FEWEST


def alive() -> int:
    return sum(thread.name == "loader" for thread in threading.enumerate())


def test_the_thread_ends_with_the_loader() -> None:
    before = alive()
    reader = loader(prefetch=1)
    next(reader)
    assert alive() == before + 2, "one for windows, one for batches"
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
