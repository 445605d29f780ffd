"""Short digests of files and data: whether what a figure was taken from is still the same."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def digest_chunks(chunks: Iterable[bytes]) -> str:
    """Ten hexadecimal digits of all chunks together."""
    found = hashlib.blake2b(digest_size=5)
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def read_chunks(path: Path) -> Iterator[bytes]:
    """A file's content, a megabyte at a time."""
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


def digest_files(paths: Iterable[Path]) -> str:
    """Of the content of files, one behind the other."""
    return digest_chunks(chunk for path in paths for chunk in read_chunks(path))


NO_SOURCES = ("kind", "name", "cache")
"""Fields of a configuration that may be called as a file is, but are not read from one."""


def digest_named(data: Any) -> dict[str, str]:
    """Of every file that a string in JSON data names, by its content; of a folder by the sizes of its files."""
    found: dict[str, str] = {}
    match data:
        case dict():
            for name, value in data.items():
                found |= digest_named(value) if name not in NO_SOURCES else {}
        case list():
            for value in data:
                found |= digest_named(value)
        case str() if data:
            path = Path(data)
            if path.is_file():
                found[data] = digest_files([path])
            elif path.is_dir():
                sizes = sorted((str(own), own.stat().st_size) for own in path.rglob("*") if own.is_file())
                found[data] = digest_chunks([repr(sizes).encode()])
    return found
