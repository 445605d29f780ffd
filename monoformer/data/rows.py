"""Rows of JSON lines, JSON arrays and parquet files, read one by one where they lie.

Knows nothing of what rows mean. Invariant: a row is found again by its number; equal lines are in the same split.
"""

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from monoformer.data.shards import check_object, parse_json
from monoformer.data.source import Split
from monoformer.randomness import uniform


class _File(Protocol):
    @property
    def numbers(self) -> Sequence[float]:
        """For every row a number in [0, 1) that says which split it is in."""
        ...

    def row(self, index: int) -> Any:
        """The row, or a line of JSON that holds it."""
        ...


class Rows:
    """The rows of several files, one file after the other."""

    def __init__(self, files: Sequence[str]) -> None:
        self._paths = [_find(name) for name in files]
        self._files = [_open(path) for path in self._paths]
        self._starts = np.cumsum([0, *(len(file.numbers) for file in self._files)])
        if not self._starts[-1]:
            raise ValueError(f"data.files {', '.join(files)} hold no rows; give files with some")

    def split(self, split: Split, *, holdout: float) -> list[int]:
        """The rows of a split; at least one is held out where `holdout` is above 0."""
        numbers = [number for file in self._files for number in file.numbers]
        bound = max(holdout, min(numbers)) if holdout > 0 else -1.0
        rows = [row for row, number in enumerate(numbers) if (number <= bound) == (split == "test")]
        if not rows:
            raise ValueError(f"split {split!r} is empty with data.holdout {holdout} of {len(numbers)} rows; change one")
        return rows

    def read(self, row: int) -> tuple[dict[str, Any], str, Path]:
        """A row, where it stands in words, and the folder of its file; BadDocument where it is no JSON object."""
        at = int(np.searchsorted(self._starts, row, side="right")) - 1
        path, index = self._paths[at], row - int(self._starts[at])
        name = f"row {index + 1} of {path}"
        found = self._files[at].row(index)
        if isinstance(found, bytes):
            found = parse_json(found, name=name)
        return check_object(found, name=name), name, path.parent


class _Lines:
    """JSON lines: remembers where each begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        starts: list[int] = []
        numbers: list[float] = []
        start = 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    starts.append(start)
                    numbers.append(uniform("split", line.strip().decode(errors="replace")))
                start += len(line)
        self._starts, self.numbers = np.array(starts, dtype=np.int64), numbers

    def row(self, index: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(int(self._starts[index]))
            return file.readline()


class _Array:
    """A JSON array, held in memory."""

    def __init__(self, path: Path) -> None:
        try:
            self._rows = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error}); give one array of objects, or name it .jsonl") from error
        self.numbers = [uniform("split", json.dumps(row, sort_keys=True)) for row in self._rows]

    def row(self, index: int) -> Any:
        return self._rows[index]


class _Table:
    """A parquet file; its rows are split by their number."""

    def __init__(self, path: Path) -> None:
        import datasets

        try:
            table = datasets.load_dataset("parquet", data_files=[str(path)], split="train")
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as parquet ({error.__cause__ or error})") from error
        for column, feature in table.features.items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(column, datasets.Image(decode=False))
        self._table = table
        self.numbers = [uniform("split", path.name, row) for row in range(len(table))]

    def row(self, index: int) -> Any:
        return self._table[index]


def _find(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"data.files names {name!r}, but there is no such file; check the path")
    return path


def _open(path: Path) -> _File:
    if path.suffix == ".parquet":
        return _Table(path)
    with path.open("rb") as file:
        start = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()
    return _Array(path) if start.startswith(b"[") else _Lines(path)
