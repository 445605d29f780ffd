"""Plain text files, cut into documents at paragraph ends.

Knows nothing of tokens. Invariant: no document is longer than `characters`, and equal documents are always in the
same split, so a licence that stands in every book does not leak from training into the test.
"""

import re
from collections.abc import Iterator
from itertools import compress
from pathlib import Path

from monoformer.config.data import TextData, check_named
from monoformer.config.spelling import nearest
from monoformer.data.captions import read_text
from monoformer.data.folders import files_in
from monoformer.data.skipped import BadDocument
from monoformer.data.source import Order, Split
from monoformer.document import Document, Text
from monoformer.randomness import uniform

SENTENCE_END = re.compile(r"[.!?][\"'\u201d\u2019)\]]*(?=\s)")


class TextFiles:
    """UTF-8 files as plain documents, random access. The split does not depend on the seed. A file that cannot be read
    is a document of the training split, the last one.
    """

    def __init__(self, config: TextData, *, split: Split = "train", seed: int = 0) -> None:
        pieces: list[str] = []
        broken: list[BadDocument] = []
        for path in text_files(config):
            try:
                pieces += cut(read_text(path), characters=config.characters)
            except BadDocument as bad:
                broken.append(bad)
        if not pieces and broken:
            raise broken[0]
        if not pieces:
            raise ValueError(f"data.files {', '.join(config.files)} hold no text; give files with some")
        numbers = [uniform("split", piece) for piece in pieces]
        bound = max(config.holdout, min(numbers)) if config.holdout > 0 else -1.0
        wanted = [(number <= bound) == (split == "test") for number in numbers]
        self.texts: list[str | BadDocument] = [*compress(pieces, wanted)]
        if not self.texts:
            raise ValueError(
                f"split {split!r} of data.files {', '.join(config.files)} is empty with data.holdout "
                f"{config.holdout} of {len(pieces)} documents; give more text or change one of them"
            )
        self.texts += broken if split == "train" else []
        self.length = len(self.texts)
        self._order = Order(seed, self.length)

    def document(self, index: int) -> Document:
        """Document number `index` of the endless shuffled stream; BadDocument in the place of a file that is broken."""
        text = self.texts[self._order.item(index)]
        if isinstance(text, BadDocument):
            raise text.again()
        return Document((Text(text),))


def cut(text: str, *, characters: int) -> Iterator[str]:
    """Pieces of at most `characters`: each ends at the last blank line within reach, else sentence, else word."""
    text = re.sub(r"\n(?:[ \t]*\n)+", "\n\n", text)
    start = _skip_blanks(text, 0)
    while start < len(text):
        end = len(text)
        if end - start > characters:
            end = start + _end(text[start : start + characters + 2], characters)
        yield text[start:end].rstrip()
        start = _skip_blanks(text, end)


def _skip_blanks(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _end(stretch: str, characters: int) -> int:
    """Where to cut a stretch of up to two characters more than allowed: what follows the cut tells its kind."""
    paragraph = stretch.rfind("\n\n")
    if paragraph > 0:
        return paragraph
    stretch = stretch[: characters + 1]
    sentences = [match.end() for match in SENTENCE_END.finditer(stretch)]
    if sentences:
        return sentences[-1]
    words = [match.start() for match in re.finditer(r"\s", stretch)]
    return words[-1] if words else characters


def text_files(config: TextData) -> list[Path]:
    """The files that a configuration names, those in folders by path; ValueError where there are none."""
    check_named(config)
    files: list[Path] = []
    for name in config.files:
        path = Path(name)
        if path.is_dir():
            found = [child for child in files_in(path) if child.suffix == ".txt" and child.name[0] != "."]
            if not found:
                raise ValueError(f"data.files names the folder {name!r}, which holds no .txt file; give another")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
            near = nearest(path.name, siblings)  # names alone: the paths of a deep folder are all alike
            say = f"did you mean {str(path.with_name(near))!r}?" if near else "check the path"
            raise ValueError(f"data.files names {name!r}, but there is no such file or folder; {say}")
    return files
