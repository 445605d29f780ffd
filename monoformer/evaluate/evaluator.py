"""What every evaluator is, and several as one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class Evaluator(Protocol):
    """What scores a model."""

    @property
    def total(self) -> int:
        """Items that its journal will be told of."""
        ...

    def run(self) -> Iterator[tuple[str, float]]:
        """Scores by name; a `Score` where the spread is known."""
        ...


@dataclass(frozen=True)
class Together:
    """Several evaluators, one after the other."""

    parts: Sequence[Evaluator]

    @property
    def total(self) -> int:
        """Items of all."""
        return sum(part.total for part in self.parts)

    def run(self) -> Iterator[tuple[str, float]]:
        """All their scores."""
        for part in self.parts:
            yield from part.run()
