"""What documents ask to be drawn, and the real pictures that they show.

Knows documents and sources, nothing of models.
"""

from monoformer.config.data import DataConfig
from monoformer.data.build import build_source
from monoformer.data.source import Source, usable
from monoformer.document import Document, Image, Text

PATIENCE = 100
"""Documents looked at for each one that is wanted."""


def drawings(source: Source, *, count: int) -> list[tuple[Document, Image]]:
    """The first `count` documents that draw one picture from text alone: what precedes the picture, and the picture."""
    found: list[tuple[Document, Image]] = []
    for document in usable(source, PATIENCE * count):
        *before, last = document.segments
        if isinstance(last, Image) and last.target and [type(segment) for segment in before] == [Text]:
            found.append((Document(tuple(before)), last))
        if len(found) == count:
            break
    return found


def held_out_drawings(data: DataConfig, *, count: int, seed: int, name: str) -> list[tuple[Document, Image]]:
    """Those of the held-out split; ValueError where it draws nothing from text."""
    found = drawings(build_source(data, split="test", seed=seed), count=count)
    if len(found) < count:
        raise ValueError(
            f"{name}: the held-out documents draw too few pictures from text ({len(found)} of {count} in "
            f"{PATIENCE * count}); name prompts and a reference"
        )
    return found


def read_prompts(text: str, *, count: int) -> list[Document]:
    """`count` prompts, the lines of a text in turn."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError("the file of prompts is empty; write one a line")
    return [Document((Text(lines[i % len(lines)], "user"),)) for i in range(count)]
