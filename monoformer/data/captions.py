"""Captions: from a template over columns, and from the files that lie beside pictures.

Knows nothing of pixels or documents. Invariant: a picture without a caption has none here; where no picture of a folder
has one, a ValueError says how to give them some.
"""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monoformer.config.spelling import hint


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

    def fill(self, values: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """All captions of a row. Values are lists (see `texts`); caption k takes entry k of every list, in turn."""
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
) -> dict[Path, tuple[str, ...]]:
    """Captions of pictures: from metadata.csv or metadata.jsonl, else NAME.txt, else the class folder's name.

    With `class_names`, a folder that is not among them has no name.

    Pictures that metadata lists but that are not there come last. ValueError where no picture has a caption.
    """
    listed: dict[Path, tuple[str, ...]] = {}
    for name in ("metadata.csv", "metadata.jsonl"):
        for metadata in sorted(root.rglob(name)):
            listed |= _metadata(metadata)
    found = {picture: listed.get(picture) or _beside(picture, root, class_names) for picture in pictures}
    if not any(found.values()):
        first = pictures[0]
        raise ValueError(
            f"the picture {first} has no caption, nor has any other; list them in {root / 'metadata.csv'} (columns "
            f"file_name,text), write {first.stem}.txt beside it, or put it into a folder named after its class"
        )
    return found | {picture: captions for picture, captions in listed.items() if picture not in found}


def _beside(picture: Path, root: Path, class_names: Mapping[str, str] | None) -> tuple[str, ...]:
    text = picture.with_suffix(".txt")
    if text.is_file():
        caption = read_text(text).strip()
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
        lines = [line.split(maxsplit=1) for line in content.splitlines() if line.strip()]
        return {line[0]: line[1].split(",")[0].strip() for line in lines if len(line) == 2}
    try:
        found = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"data.class_names: {path} is not JSON ({error}); write {{folder: name}}") from error
    names = {key: texts(value.get("label") if isinstance(value, dict) else value) for key, value in found.items()}
    return {key: name[0] for key, name in names.items() if name}


def _metadata(path: Path) -> dict[Path, tuple[str, ...]]:
    """Captions by picture of a Hugging Face ImageFolder metadata file; file names are relative to its folder."""
    content = read_text(path)
    rows: list[Any] = []
    if path.suffix == ".csv":
        rows = list(csv.DictReader(content.splitlines(keepends=True)))
    else:
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number} is not JSON ({error}); write one object a line") from error
    found: dict[Path, tuple[str, ...]] = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise ValueError(f"{path} needs the columns file_name and text in every row, but has {row}")
        others = [column for column in row if column not in ("file_name", None)]
        column = "text" if "text" in others or len(others) != 1 else others[0]
        check_column(column, columns=others, setting=str(path))
        found[path.parent / row["file_name"]] = texts(row[column])
    return found


def read_text(path: Path) -> str:
    """A UTF-8 file (with or without a byte order mark), with Unix newlines; ValueError where it is not one."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv -t utf-8") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
