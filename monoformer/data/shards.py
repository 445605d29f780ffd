"""Shards of rows, read so that what is broken costs its own row alone: members of webdataset tars, lines of JSON lines.

Knows nothing of what rows mean. Invariant: nothing is decoded while a shard is read.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from monoformer.data.skipped import BadDocument


def read_tars(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of webdataset tars: {what follows the first dot of a member's name: its bytes}, members of one row
    beside each other.
    """
    import fsspec

    for path in paths:
        with fsspec.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for (folder, key), members in groupby(_members(tar), key=lambda member: member[:2]):
                yield {"__key__": f"{folder}{key}"} | {kind: content for _, _, kind, content in members}


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, str, bytes]]:
    """Folder, key, kind and content of every file."""
    for member in tar:
        file = tar.extractfile(member) if member.isfile() else None
        if file is not None:
            folder, slash, name = member.name.rpartition("/")
            key, _, kind = name.partition(".")
            yield folder + slash, key, kind.lower(), file.read()


def parse_members(row: Mapping[str, Any], *, name: str) -> Mapping[str, Any]:
    """A row of a tar with its JSON read. Raises BadDocument where that is broken."""
    return {kind: parse_json(content, name=name) if kind == "json" else content for kind, content in row.items()}


def parse_line(row: Mapping[str, Any], *, name: str) -> Mapping[str, Any]:
    """A row of JSON lines. Raises BadDocument where it is none."""
    return check_object(parse_json(row["text"].removeprefix("\ufeff"), name=name), name=name)


def check_object(found: Any, *, name: str) -> dict[str, Any]:
    """What was read, an object. Raises BadDocument for anything else."""
    if not isinstance(found, dict):
        raise BadDocument(f"{name} is no JSON object, but {found!r:.80}", cause="broken JSON")
    return found


def parse_json(content: str | bytes, *, name: str) -> Any:
    """JSON of any kind. Raises BadDocument where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # also nested too deeply, or a number of too many digits
        raise BadDocument(f"{name} is not JSON ({error})", cause="broken JSON") from error
