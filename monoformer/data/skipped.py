"""Documents that cannot be used: what is wrong with one, and a tally of them by source and cause.

A skipped document keeps its number, so that nothing after it shifts. Knows nothing of where documents come from.
Invariant: the tally is a function of the stream's documents, never of ranks or of what was read ahead.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

EXAMPLES = 3
"""Examples kept of each cause."""
FEWEST = 20
"""With fewer skipped documents than this a share says nothing, and no run is ended."""
RECENT = 1000
"""So many of the stream's last documents are judged by themselves too: what breaks late is a small share of all."""
MOST_RECENT = 0.5
"""Largest share of a source's documents among these that may be skipped."""


class BadDocument(ValueError):  # noqa: N818 (a value in streams, too)
    """A document that cannot be used: raised where it is made, and handed on by streams in the document's place."""

    def __init__(self, example: str, *, cause: str) -> None:
        """`example`: the whole sentence, which names the document. `cause`: a few words, the same for all of a kind."""
        super().__init__(example)
        self.cause = cause

    def again(self) -> "BadDocument":
        """The same to be raised once more: one that is raised keeps where, and with it all that lived there."""
        return BadDocument(str(self), cause=self.cause)


def unreadable(error: Exception, *, name: str) -> BadDocument:
    """What is wrong with a document whose reading raised something that nobody foresaw: its run goes on."""
    kind = type(error).__name__
    return BadDocument(f"{name} cannot be read ({kind}: {error})", cause=f"cannot be read ({kind})")


class Tally:
    """How many documents of each source were read, and how many of them skipped for which cause."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        """Go on from what `state_dict` gave."""
        self._sources: dict[str, dict[str, Any]] = copy.deepcopy(state or {})

    def state_dict(self) -> dict[str, Any]:
        """{source: {"read": count, "skipped": {cause: {"count": count, "examples": [sentence, ...]}}, "recent": list}}.

        `recent`: [number, cause] of the last skipped documents, at most `RECENT` of a source.
        """
        return copy.deepcopy(self._sources)

    def add(self, source: str, number: int, bad: BadDocument | None) -> None:
        """Note document `number` of the stream, from this source; None: it was good."""
        self._own(source)["read"] += 1
        if bad is not None:
            self.skip(source, number, bad)

    def skip(self, source: str, number: int, bad: BadDocument) -> None:
        """Note what was found later: a document that was read, by this tally or another, and cannot be used."""
        self._skip(source, bad.cause, 1, [f"document {number}: {bad}"])
        self._remember(source, [[number, bad.cause]])

    def plus(self, other: "Tally") -> "Tally":
        """Both together."""
        both = Tally(self._sources)
        for source, own in other._sources.items():
            both._own(source)["read"] += own["read"]
            both._remember(source, own.get("recent", []))
        for source, cause, count, examples in other.entries():
            both._skip(source, cause, count, examples)
        return both

    def _own(self, source: str) -> dict[str, Any]:
        return self._sources.setdefault(source, {"read": 0, "skipped": {}})

    def _remember(self, source: str, recent: list[list[Any]]) -> None:
        own = self._own(source)
        own["recent"] = sorted(own.get("recent", []) + recent)[-RECENT:]

    def _skip(self, source: str, cause: str, count: int, examples: list[str]) -> None:
        found = self._own(source)["skipped"].setdefault(cause, {"count": 0, "examples": []})
        found["count"] += count
        found["examples"] += examples[: EXAMPLES - len(found["examples"])]

    @property
    def total(self) -> int:
        """All skipped documents."""
        return sum(count for _, _, count, _ in self.entries())

    def entries(self) -> Iterator[tuple[str, str, int, list[str]]]:
        """(source, cause, count, first examples) of everything that was skipped."""
        for source, own in self._sources.items():
            for cause, found in own["skipped"].items():
                yield source, cause, found["count"], found["examples"]

    def read(self, source: str) -> int:
        """Documents of a source that were read, skipped ones included."""
        return int(self._sources[source]["read"]) if source in self._sources else 0

    def check(self, limit: float, origin: Callable[[int], str]) -> None:
        """Raise ValueError where more than this share of a source's documents was skipped, or most of the latest ones.

        `origin`: the source of the document of a number.
        """
        for source, own in self._sources.items():
            causes = Counter({cause: found["count"] for cause, found in own["skipped"].items()})
            if causes.total() >= FEWEST and causes.total() > limit * own["read"]:
                raise self._refusal(source, causes, f"{own['read']} documents", limit)
        end = sum(own["read"] for own in self._sources.values())
        latest = range(max(0, end - RECENT), end)
        for source, own in self._sources.items():
            causes = Counter(cause for number, cause in own.get("recent", []) if number in latest)
            if causes.total() < FEWEST:
                continue
            read = sum(origin(number) == source for number in latest)
            if causes.total() > max(limit, MOST_RECENT) * read:
                raise self._refusal(source, causes, f"the last {read} documents", max(limit, MOST_RECENT))

    def _refusal(self, source: str, causes: Counter[str], read: str, limit: float) -> ValueError:
        (cause, count), *_ = causes.most_common(1)
        examples = "; ".join(self._sources[source]["skipped"][cause]["examples"])
        return ValueError(
            f"{causes.total()} of {read} of the source {source} cannot be used, {count} of them for one cause: {cause} "
            f"({examples}). Mend the data, or allow more than a share of {limit:g} with --train.skip-limit"
        )
