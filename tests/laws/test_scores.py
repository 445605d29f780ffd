"""Figures and their spread, the journal that lets an evaluation go on, and likelihoods of text."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from monoformer.evaluate.digests import digest_named
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.likelihood import continuation, read_layouts, windows
from monoformer.evaluate.score import Score, difference, ratio, share
from tests import tiny


@pytest.mark.parametrize(("right", "count"), [(0, 16), (3, 7), (141, 256), (256, 256)])
def test_the_interval_of_a_share_is_wilsons(right: int, count: int) -> None:
    found = share(right, count)
    theirs = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert found == right / count
    assert found.low == pytest.approx(theirs.low, abs=1e-12)
    assert found.high == pytest.approx(theirs.high, abs=1e-12)
    assert json.loads(json.dumps({"a": found})) == {"a": right / count}


def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        wholes = random.integers(1, 4, size=200)
        luck = random.beta(2, 2, size=200)  # things of one picture succeed together
        parts = random.binomial(wholes, luck)
        found = ratio(list(map(float, parts)), list(map(float, wholes)))
        covered += found.low <= 0.5 <= found.high
    assert 0.92 < covered / 400 < 0.98


def test_where_nothing_differs_the_interval_is_no_point() -> None:
    """512 pictures without a fault do not prove that there will be none: Wilson's bounds over the pictures."""
    for parts, bounds in (([2.0, 3.0, 1.0], share(3, 3)), ([0.0, 0.0, 0.0], share(0, 3))):
        found = ratio(parts, [2.0, 3.0, 1.0])
        assert (found.low, found.high) == (bounds.low, bounds.high)
        assert found.count == 3
        assert (found.low, found.high) != (found, found)


def test_figures_change_their_unit_and_are_compared_with_their_spread() -> None:
    one, two = Score(3.0, low=2.0, high=4.0, count=9), Score(1.0, low=1.0 - math.sqrt(3), high=1.0 + math.sqrt(3))
    assert (one.scaled(2), one.scaled(2).low, one.exp().high) == (6.0, 4.0, math.exp(4.0))
    assert (one.within(2.5, 3.5).low, one.within(2.5, 3.5).high) == (2.5, 3.5)
    gap = difference(one, two)
    assert (gap, gap.low, gap.high) == (2.0, pytest.approx(0.0), pytest.approx(4.0))
    assert difference(one, Score(1.0)).low is None


def test_a_journal_computes_every_chunk_once(tmp_path: Path) -> None:
    done: list[int] = []

    def work(number: int) -> list[tuple[float, bool]]:
        done.append(number)
        return [(number / 3, True)]

    watched: list[int] = []
    first = Journal(tmp_path / "a", watch=watched.append)
    found = [first.remember("x", n, count=2, compute=lambda n=n: work(n)) for n in range(3)]
    with (tmp_path / "a" / "chunks.jsonl").open("a") as file:
        file.write('{"chunk": "x/3", "fou')  # killed while it wrote
    second = Journal(tmp_path / "a", watch=watched.append)
    again = [second.remember("x", n, count=2, compute=lambda n=n: work(n)) for n in range(5)]
    assert done == [0, 1, 2, 3, 4]
    assert again[:3] == found == [[[n / 3, True]] for n in range(3)]
    assert watched == [2] * 8
    assert Journal(tmp_path / "a").remember("x", 4, count=2, compute=lambda: work(9)) == [[4 / 3, True]]
    assert Journal(tmp_path / "a").part("b").remember("x", 4, count=1, compute=lambda: work(9)) == [[3.0, True]]


def test_chunks_of_another_size_are_not_taken_for_these(tmp_path: Path) -> None:
    """A killed evaluation that goes on with a smaller batch counts no item twice and leaves none out."""
    for size in (4, 2, 3):
        chunks = [range(first, min(first + size, 7)) for first in range(0, 7, size)]
        for chunk in chunks[:-1] if size < 3 else chunks:  # the first two are killed before their last chunk
            compute = partial(list, chunk)
            made = partial(np.array, chunk)
            kept = Journal(tmp_path).remember("x", chunk[0], count=len(chunk), compute=compute)
            array = Journal(tmp_path).keep("y", chunk[0], count=len(chunk), compute=made)
            assert kept == [*array] == [*chunk]


def test_a_journal_keeps_arrays(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert np.array_equal(Journal(tmp_path / "a").keep("drawn", 0, count=1, compute=lambda: pixels), pixels)
    journal = Journal(tmp_path / "a")
    assert np.array_equal(journal.keep("drawn", 0, count=1, compute=lambda: pixels + 1), pixels)
    journal.forget()
    assert not (tmp_path / "a").exists()
    assert np.array_equal(Journal().keep("drawn", 0, count=1, compute=lambda: pixels + 1), pixels + 1)


@pytest.mark.parametrize(
    ("count", "length", "stride"), [(10, 20, 5), (20, 20, 5), (21, 20, 5), (50, 16, 8), (50, 16, 15)]
)
def test_windows_ask_for_every_token_once(count: int, length: int, stride: int) -> None:
    ids = list(range(100, 100 + count))
    asked: list[int] = []
    for window in windows(ids, length=length, stride=stride):
        assert len(window) <= length
        for token, label in zip(window.ids, window.labels, strict=True):
            assert label in (token + 1, -100)
        asked += [label for label in window.labels if label >= 0]
    assert asked == ids[1:]


def test_a_changed_file_is_another_evaluation_and_a_filled_cache_is_not(tmp_path: Path) -> None:
    text, folder, cache = tmp_path / "a.txt", tmp_path / "files", tmp_path / "cache"
    text.write_text("one")
    config = {"files": [str(text)], "folder": str(folder), "inner": {"cache": str(cache), "name": str(text)}, "n": 1}
    first = digest_named(config)
    assert list(first) == [str(text)]
    folder.mkdir()
    cache.mkdir()
    (cache / "kept.npz").write_text("features")
    second = digest_named(config)
    assert list(second) == [str(text), str(folder)]
    assert second[str(text)] == first[str(text)]
    (folder / "b.txt").write_text("two")
    text.write_text("six")
    third = digest_named(config)
    assert all(third[name] != digest for name, digest in second.items())
    (folder / "b.txt").write_text("one")  # of the same size, as the weights of a model that was trained on
    assert digest_named(config)[str(folder)] != third[str(folder)]
    assert digest_named(config, read=False)[str(folder)] != digest_named(config)[str(folder)]


@torch.no_grad()
def test_the_likelihood_of_a_continuation_alone_and_packed() -> None:
    pretrained = tiny.pretrained()
    context, following = [0, 5, 9, 30], [[7, 7, 2], [11], [4, 250, 6, 9]]
    layouts = [continuation(context, ids, length=160) for ids in following]
    readings = read_layouts(pretrained, layouts)
    for ids, reading in zip(following, readings, strict=True):
        whole = torch.tensor([[*context, *ids]])
        mask = torch.ones(1, whole.shape[1], whole.shape[1], dtype=torch.bool).tril()
        hidden = pretrained.model(whole, torch.arange(whole.shape[1])[None], mask)
        logs = pretrained.model.text(hidden).log_softmax(-1)[0, len(context) - 1 : -1]
        assert reading.tokens == len(ids)
        assert -reading.nats == pytest.approx(float(logs[torch.arange(len(ids)), ids].sum()), rel=1e-4)
        assert reading.greedy == bool((logs.argmax(-1) == torch.tensor(ids)).all())
    likeliest = [int(logs[0].argmax())]
    assert read_layouts(pretrained, [continuation(context, likeliest, length=160)])[0].greedy


def test_a_long_context_loses_its_beginning_as_in_lm_eval() -> None:
    layout = continuation(range(1, 20), [50, 51], length=8)
    assert layout.ids == [13, 14, 15, 16, 17, 18, 19, 50]
    assert layout.labels == [-100] * 6 + [50, 51]
    with pytest.raises(ValueError, match="a continuation has 9 tokens, but"):
        continuation([1], [2] * 9, length=8)
    with pytest.raises(ValueError, match="a continuation has 0 tokens, but"):
        continuation([1], [], length=8)
