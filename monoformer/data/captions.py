"""Captions: from a template over columns, and from the files that lie beside pictures.

Knows nothing of pixels or documents. Invariant: a picture without a caption has none here, and one whose caption is
broken has what is wrong with it; where no picture of a folder has one, a ValueError says how to give them some.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from monoformer.config.spelling import hint
from monoformer.data.folders import files_in
from monoformer.data.shards import parse_json
from monoformer.data.skipped import BadDocument

Captions: TypeAlias = tuple[str, ...] | BadDocument
"""All captions of a picture, none among them; or what is wrong with what should have told them."""
METADATA = ("metadata.csv", "metadata.jsonl")
"""Files that list a folder's pictures; where both do, the second counts."""


class CaptionTemplate:
    """'{name}[, {skin_tone} skin tone]': columns in { }; parts in [ ] vanish when a column in them is empty."""

    def __init__(self, template: str) -> None:
        parts = re.findall(r"\[([^\[\]]*)\]|([^\[\]]+)", template)
        rebuilt = "".join(plain or f"[{optional}]" for optional, plain in parts)
        columns = [re.findall(r"\{([^{}]+)\}", optional or plain) for optional, plain in parts]
        leftover = re.sub(r"\{[^{}]+\}", "", template)
        if rebuilt != template or "{" in leftover or "}" in leftover:
            raise ValueError(f"data.caption has unbalanced brackets: {template!r}; write '{{name}}[, {{tone}}]'")
        for (optional, plain), found in zip(parts, columns, strict=True):
            if not plain and not found:
                raise ValueError(f"data.caption has no column in its part [{optional}]: {template!r}; remove its [ ]")
        if not any(columns):
            raise ValueError(f"data.caption holds no column, but is {template!r}; name one, such as '{{caption}}'")
        self._parts = [(optional or plain, not plain) for optional, plain in parts]
        self.columns = tuple(dict.fromkeys(column for found in columns for column in found))
        self.needed = tuple(
            dict.fromkeys(column for (_, plain), found in zip(parts, columns, strict=True) if plain for column in found)
        )
        """Those outside of [ ], without which there is no caption."""

    def fill(self, values: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """All captions of a row: none where what it needs is empty.

        Values are lists (see `texts`); caption k takes entry k of every list, in turn.
        """
        if not all(values[column] for column in self.needed):
            return ()
        count = max([len(values[column]) for column in self.columns] + [1])
        return tuple(dict.fromkeys(self._fill(values, choice) for choice in range(count)))

    def _fill(self, values: Mapping[str, Sequence[str]], choice: int) -> str:
        def value(match: re.Match[str]) -> str:
            entries = values[match[1]]
            return entries[choice % len(entries)] if entries else ""

        result = ""
        for part, optional in self._parts:
            if not optional or all(values[column] for column in re.findall(r"\{([^{}]+)\}", part)):
                result += re.sub(r"\{([^{}]+)\}", value, part)
        return result.strip()


def texts(value: Any) -> tuple[str, ...]:
    """A cell as its non-empty strings: none for None, '', 'none' and NaN; several for a list."""
    if isinstance(value, list | tuple):
        return tuple(text for entry in value for text in texts(entry))
    text = "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()
    return () if text.lower() in ("", "none") else (text,)


def check_column(column: str, *, columns: Sequence[str], setting: str) -> None:
    """ValueError that names the columns and the nearest one, where `column` is missing."""
    if column not in columns:
        say = hint(column, columns, otherwise="choose one of these", cutoff=0.5)  # part of a name is near
        raise ValueError(f"{setting} names the column {column!r}, but the data has {', '.join(columns)}; {say}")


def folder_captions(
    root: Path, pictures: Sequence[Path], *, class_names: Mapping[str, str] | None = None
) -> dict[Path, Captions]:
    """Captions of pictures: from metadata.csv or metadata.jsonl, else NAME.txt, else the class folder's name.

    With `class_names`, a folder that is not among them has no name.

    Pictures that metadata lists but that are not there come last, and with them, named by its place, each row of
    metadata that names no picture. ValueError where no picture has a caption.
    """
    listed: dict[Path, Captions] = {}
    files = files_in(root)
    for name in METADATA:
        for metadata in files:
            listed |= _metadata(metadata) if metadata.name == name else {}
    own = {_place(picture): picture for picture in pictures}
    listed = {own.get(_place(named), named): captions for named, captions in listed.items()}
    found = {p: listed[p] if p in listed else _beside(p, root, class_names) for p in pictures}
    wrong = next((captions for captions in found.values() if isinstance(captions, BadDocument)), None)
    if not any(captions for captions in found.values() if not isinstance(captions, BadDocument)):
        if wrong:
            raise wrong
        first = pictures[0]
        raise ValueError(
            f"the picture {first} has no caption, nor has any other; list them in {root / 'metadata.csv'} (columns "
            f"file_name,text), write {first.stem}.txt beside it, or put it into a folder named after its class"
        )
    return found | {picture: captions for picture, captions in listed.items() if picture not in found}


def _place(path: Path) -> str:
    """Where a file is, whether its name is absolute, relative or has `..` in it; links are not followed."""
    return os.path.abspath(path)  # noqa: PTH100


def _beside(picture: Path, root: Path, class_names: Mapping[str, str] | None) -> Captions:
    text = picture.with_suffix(".txt")
    if text.is_file():
        try:
            caption = read_text(text).strip()
        except BadDocument as bad:
            return bad
    elif class_names is not None:
        caption = class_names.get(picture.parent.name, "")
    else:
        caption = picture.parent.name.replace("_", " ").strip() if picture.parent != root else ""
    return (caption,) if caption else ()


def read_class_names(path: Path) -> dict[str, str]:
    """Names of class folders: lines 'FOLDER NAME, SYNONYM', of which the first name counts, or a JSON object whose
    values are names, lists of them, or objects with a "label".
    """
    content = read_text(path)
    if not content.lstrip().startswith("{"):
        lines = [line.split(maxsplit=1) for line in content.split("\n") if line.strip()]
        return {line[0]: line[1].split(",")[0].strip() for line in lines if len(line) == 2}
    try:
        found = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"data.class_names: {path} is not JSON ({error}); write {{folder: name}}") from error
    names = {key: texts(value.get("label") if isinstance(value, dict) else value) for key, value in found.items()}
    return {key: name[0] for key, name in names.items() if name}


def _metadata(path: Path) -> dict[Path, Captions]:
    """Captions by picture of a Hugging Face ImageFolder metadata file; file names are relative to its folder.

    A row that cannot be used is under its picture, or under its own place where it names none. ValueError where no row
    names a picture, or none has a text.
    """
    rows = [(f"{path.name} line {line}", row) for line, row in (_csv if path.suffix == ".csv" else _json_lines)(path)]
    good = [row for _, row in rows if not isinstance(row, BadDocument)]
    broken = [row for _, row in rows if isinstance(row, BadDocument)]
    if not good:
        if broken:
            raise broken[0]
        return {}
    others = [
        column for column in dict.fromkeys(key for row in good for key in row) if column not in ("file_name", None)
    ]
    if not others:
        raise ValueError(f"{path} has no column beside file_name; add the captions as the column text")
    column = "text" if "text" in others or len(others) != 1 else others[0]
    check_column(column, columns=others, setting=str(path))
    found: dict[Path, Captions] = {}
    for place, row in rows:
        if isinstance(row, BadDocument):
            found[path.with_name(place)] = row
            continue
        picture, captions = path.parent / row["file_name"], _captions_of(row, column, name=str(path.with_name(place)))
        before = found.get(picture, ())
        if not isinstance(before, BadDocument):  # several rows may be of one picture
            found[picture] = captions if isinstance(captions, BadDocument) else tuple(dict.fromkeys(before + captions))
    return found


def _captions_of(row: Mapping[Any, Any], column: str, *, name: str) -> Captions:
    """What a row of metadata says of its picture, or what is wrong with it."""
    if any(row.get(None) or ()):
        say = f"{name} has more cells than the columns; put a text that has commas into quotes"
        return BadDocument(say, cause="broken CSV")
    if column not in row:
        return BadDocument(f"{name} has no {column!r}, but {', '.join(row)}", cause="no caption")
    return texts(row[column])


def _csv(path: Path) -> Iterator[tuple[int, dict[Any, Any] | BadDocument]]:
    """The rows of a CSV file that name a picture, what is wrong with the others, and the line that each ends in."""
    reader = csv.DictReader(io.StringIO(read_text(path, errors="surrogateescape"), newline=""))
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:  # a quote that is never closed swallows rows until its field is too long
            line = reader.line_num + 1
            say = f"{path} line {line} is not CSV ({error}); close its quotes"
            yield line, BadDocument(say, cause="broken CSV")
            continue
        if row is None:
            return
        name = f"{path} line {reader.line_num}"
        cells = [cell for pair in row.items() for cell in pair if isinstance(cell, str)]
        if re.search("[\udc80-\udcff]", "".join(cells)):  # the lone surrogates of wrong bytes
            say = f"{name} is not UTF-8; convert it, e.g. with iconv -t utf-8"
            yield reader.line_num, BadDocument(say, cause="not UTF-8")
        else:
            yield reader.line_num, _named(row, name)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[Any, Any] | BadDocument]]:
    """The same of JSON lines."""
    for number, line in enumerate(read_text(path, errors="surrogateescape").split("\n"), start=1):
        if not line.strip():
            continue
        name = f"{path} line {number}"
        try:
            row = parse_json(line.encode(errors="surrogateescape"), name=name)
        except BadDocument as bad:
            yield number, bad
        else:
            yield number, _named(row, name)


def _named(row: Any, name: str) -> dict[Any, Any] | BadDocument:
    """A row that names a picture."""
    if isinstance(row, dict) and isinstance(row.get("file_name"), str) and row["file_name"]:
        return row
    say = f"{name} needs the columns file_name and text, but has {row!r:.200}"
    return BadDocument(say, cause="no file_name")


def read_text(path: Path, *, errors: Literal["strict", "surrogateescape"] = "strict") -> str:
    """A UTF-8 file (with or without a byte order mark), with Unix newlines; BadDocument where it is not one, or with
    its wrong bytes as lone surrogates.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        say = f"{path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv -t utf-8"
        raise BadDocument(say, cause="not UTF-8") from error
    except OSError as error:
        say = f"{path} cannot be read ({error.strerror}); check its permissions"
        raise BadDocument(say, cause="cannot be read") from error
