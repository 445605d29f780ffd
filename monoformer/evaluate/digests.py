"""Short digests of files and data: whether what a figure was taken from is still the same."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from monoformer.data.images import SUFFIXES


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


def digest_named(data: Any, *, read: bool = True) -> dict[str, str]:
    """Of every file and folder that a string in JSON data names: its content, but of pictures in folders the sizes.

    With `read` false, for files that may be huge, sizes and times alone.
    """
    found: dict[str, str] = {}
    match data:
        case dict():
            for name, value in data.items():
                found |= digest_named(value, read=read) if name not in NO_SOURCES else {}
        case list():
            for value in data:
                found |= digest_named(value, read=read)
        case str() if data:
            path = Path(data)
            if path.is_file() or path.is_dir():
                found[data] = digest_chunks(_look(path, read=read))
    return found


def _look(path: Path, *, read: bool) -> Iterator[bytes]:
    """What tells a file, or all within a folder, from another."""
    if not path.is_dir():
        yield from read_chunks(path) if read else [repr(_state(path)).encode()]
        return
    for own in sorted(own for own in path.rglob("*") if own.is_file()):
        yield repr((str(own.relative_to(path)), own.stat().st_size)).encode()
        if read and own.suffix.lower() not in SUFFIXES:
            yield from read_chunks(own)
        elif not read:
            yield repr(_state(own)).encode()


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
