"""The project's pages in Markdown: their code blocks, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "reproduce/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
"""Every page that tells a user what to type."""


def read(name: str) -> str:
    """The text of a page of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Contents of the code blocks in a language; '' for those that name none."""
    fences = re.findall(r"^```([^\n]*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block for named, block in fences if named.strip() == language]


def lines(text: str) -> Iterator[str]:
    """Lines of shell blocks and of blocks in no language, each with the lines that continue it."""
    for block in [*blocks(text, "bash"), *blocks(text, "")]:
        yield from (line.strip() for line in block.replace("\\\n", " ").splitlines())


def commands(text: str) -> list[list[str]]:
    """Arguments of every `monoformer` line, also behind `torchrun ... -m` and `python -m`, comments dropped."""
    found = (re.match(r"(?:torchrun .* -m |python -m )?monoformer (.+)", line) for line in lines(text))
    return [shlex.split(match[1], comments=True) for match in found if match]


def inline_commands(text: str) -> list[list[str]]:
    """Arguments of the `monoformer ...` commands within sentences that are given in full: with an option."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = [shlex.split(said) for said in re.findall(r"`monoformer ([^`]* --[^`]*)`", prose)]
    return [words for words in found if not {"PRESET", "...", "COMMAND"} & set(words)]
