"""What an evaluation has found so far, chunk by chunk, so that a killed one goes on where it was.

Knows nothing of what is found. Invariant: a chunk that is written down is never computed again, and comes back as it
was when it was computed: numbers in JSON keep every bit, pictures are arrays in files of their own. One of another size
is another chunk, so that going on with another `--batch` counts nothing twice.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from monoformer.files import whole_file
from monoformer.sweep import append_result, read_results

Watch: TypeAlias = Callable[[int], None]
"""watch(n): n more items are done."""
Array: TypeAlias = NDArray[Any]


def unwatched(count: int) -> None:
    """Watches nothing."""


class Journal:
    """One evaluation's chunks, in a folder of its own; without a folder nothing is kept."""

    def __init__(self, folder: Path | None = None, *, watch: Watch = unwatched) -> None:
        self.folder, self.watch = folder, watch
        self._found: dict[str, Any] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._found = {record["chunk"]: record["found"] for record in read_results(folder / "chunks.jsonl")}

    def remember(self, *key: str | int, count: int, compute: Callable[[], Any]) -> Any:
        """The chunk of that key and size, computed unless it is known: JSON data about `count` items."""
        name = "/".join(map(str, (*key, count)))
        if name not in self._found:
            found = json.loads(json.dumps(compute()))
            if self.folder is not None:
                append_result(self.folder / "chunks.jsonl", {"chunk": name, "found": found})
            self._found[name] = found
        self.watch(count)
        return self._found[name]

    def keep(self, *key: str | int, count: int, compute: Callable[[], Array]) -> Array:
        """The same for a chunk that is one array."""
        if self.folder is None:
            array = compute()
        else:
            path = self.folder / ("-".join(map(str, (*key, count))) + ".npy")
            if not path.is_file():
                with whole_file(path) as incomplete, incomplete.open("wb") as file:
                    np.save(file, compute(), allow_pickle=False)
            array = np.load(path, allow_pickle=False)
        self.watch(count)
        return array

    def part(self, name: str) -> "Journal":
        """A journal inside this one, for a part whose keys may be those of another; this one's watch is told."""
        return Journal(None if self.folder is None else self.folder / name, watch=self.tell)

    def tell(self, count: int) -> None:
        """So many items are done, in a part of this journal."""
        self.watch(count)

    def forget(self) -> None:
        """Remove the folder, once the figures are written elsewhere."""
        if self.folder is not None:
            shutil.rmtree(self.folder)
