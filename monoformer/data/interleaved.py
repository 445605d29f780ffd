"""Documents of text and pictures in any order, from JSON lines.

Knows nothing of tokens. Invariant: segments keep their order; a document of one wrong segment is skipped whole.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from monoformer.config.sources import InterleavedData
from monoformer.data.chat import find_named, read_role
from monoformer.data.rows import Rows
from monoformer.data.skipped import BadDocument
from monoformer.data.source import Order, Split
from monoformer.document import Document, Segment, Text


class Interleaved:
    """Interleaved documents in files, random access."""

    def __init__(self, config: InterleavedData, *, split: Split = "train", seed: int = 0) -> None:
        self._config = config
        self._rows = Rows(config.files)
        self.rows = self._rows.split(split, holdout=config.holdout)
        self._order = Order(seed, len(self.rows))

    def document(self, index: int) -> Document:
        """Document number `index` of the endless shuffled stream; BadDocument where the row is none."""
        row, name, folder = self._rows.read(self.rows[self._order.item(index)])
        entries = row.get("segments")
        if not isinstance(entries, list) or not entries:
            raise BadDocument(f"{name} has no list of segments, but {entries!r:.80}", cause="no segments")
        segments = tuple(self._segment(entry, name, folder) for entry in entries)
        if len({segment.role is None for segment in segments}) > 1:
            raise BadDocument(f"{name} has segments with and without a role", cause="roles of some segments only")
        return Document(segments)

    def _segment(self, entry: Any, name: str, folder: Path) -> Segment:
        entry = {key: value for key, value in entry.items() if value is not None} if isinstance(entry, dict) else {}
        if ("text" in entry) == ("image" in entry):
            say = f"{name} has a segment that is neither a text nor an image: {entry!r:.80}"
            raise BadDocument(say, cause="wrong type")
        role = read_role(entry["role"], name) if "role" in entry else None
        if "text" in entry:
            if not isinstance(entry["text"], str) or not entry["text"]:
                raise BadDocument(f"{name} has a text that is {entry['text']!r:.80}", cause="empty text")
            return Text(entry["text"], role)
        drawn = entry.get("target", self._config.draw if role is None else role == "assistant")
        if not isinstance(drawn, bool):
            raise BadDocument(f"{name} has a target that is {drawn!r:.40}, not true or false", cause="wrong type")
        picture = find_named(self._config, entry["image"], name=name, folder=folder)
        return replace(picture, target=drawn, role=role)
