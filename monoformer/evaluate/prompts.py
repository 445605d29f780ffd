"""What is asked to be drawn: by documents, with the real pictures that they show, or by a file of prompts.

Knows documents and sources, nothing of models. Invariant: a line of a file is what ends with a newline, so that the
n-th prompt is the n-th line's.
"""

import json
from pathlib import Path

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


def prompts_of(path: Path, *, count: int) -> list[Document]:
    """`count` prompts, those of a file in turn."""
    lines = read_lines(path)
    return [Document((Text(lines[i % len(lines)], "user"),)) for i in range(count)]


def read_lines(path: Path) -> tuple[str, ...]:
    """The prompts of a file: its lines, or of JSON lines their `prompt`. Raises ValueError for none."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as prompts, one a line: {error!r}") from None
    lines = enumerate((line.strip() for line in text.split("\n")), start=1)  # splitlines would cut at U+2028 too
    reads = path.suffix == ".jsonl"
    prompts = tuple(_prompt(line, where=f"{path}:{number}") if reads else line for number, line in lines if line)
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one a line")
    return prompts


def _prompt(line: str, *, where: str) -> str:
    """The `prompt` of a JSON line. Raises ValueError where it is no text."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    prompt = found.get("prompt") if isinstance(found, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where} needs a 'prompt' that is a text and not empty, but is {line:.100}")
    return prompt
