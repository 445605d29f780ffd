"""Files and folders that are there whole or not at all, whenever a process is killed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, *, mark: str = "") -> Iterator[Path]:
    """A file to write that takes the place of `path` when all is written, or never.

    Writers of the same path at once need a `mark` each.
    """
    incomplete = path.with_name(f"{path.name}{mark}.incomplete")
    yield incomplete
    incomplete.replace(path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `folder` when all is written, or never.

    Its files can be read by whoever may read the folder: some libraries write theirs for the owner alone.
    """
    folder = folder.resolve()  # of a link, what it points to
    if Path.cwd().is_relative_to(folder):
        raise ValueError(f"{folder} is the current folder or holds it, and cannot be replaced; name a folder within it")
    incomplete = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir(parents=True)
    yield incomplete
    for path in incomplete.rglob("*"):
        path.chmod(incomplete.stat().st_mode & (0o777 if path.is_dir() else 0o666))
    if folder.exists():
        shutil.rmtree(folder)
    incomplete.rename(folder)
