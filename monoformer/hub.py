"""Networks of others that a run names: their folders, here or on the hub, and copies of them in model folders.

Knows nothing of what such a network does. Invariant: only the files asked for are fetched or copied.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

COPIED = 100 * 2**20
"""Largest network from the hub, in bytes, that is copied into a model folder; a larger one is kept by name."""


def locate(path: str, *, field: str, files: Sequence[str], download: bool = True) -> Path:
    """The folder that `path` names; `files` (patterns) of it are downloaded when it is OWNER/NAME or OWNER/NAME/FOLDER.

    Without `download`, what was downloaded before. Raises ValueError, naming the configuration's `field`.
    """
    folder = Path(path)
    owner, _, rest = path.partition("/")
    name, _, inner = rest.partition("/")
    if folder.is_dir():
        return folder
    if not name or path.startswith((".", "/", "~")):
        raise ValueError(f"{field} is {path!r}, neither a folder here nor a hub name (OWNER/NAME)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [f"{inner}/{pattern}" if inner else pattern for pattern in files]
        found = snapshot_download(f"{owner}/{name}", allow_patterns=patterns, local_files_only=not download)
        return Path(found) / inner
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f"{field} is {path!r}, neither a folder here nor given out by the hub: {cause}") from None


def upload(folder: Path, name: str, *, private: bool = False) -> str:
    """Put a folder on the Hugging Face hub as `name` (OWNER/NAME); the page's address.

    Raises ValueError where the hub cannot be reached or refuses it.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder))
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
            f"{name!r} cannot be put on the hub at {api.endpoint} ({cause}); check the network, OWNER/NAME, and "
            f"that you may write there (type: hf auth login)"
        ) from error


def keep(path: str, folder: Path, *, place: str, field: str, files: Sequence[str]) -> str:
    """Copy a network into the model folder's `place`, so that the folder stands alone; the path that it then names.

    A large one from the hub, one that was not downloaded yet, and one that only Python code knows is kept by name.
    """
    if not path:
        return path
    local = Path(path).is_dir()
    try:
        found = locate(path, field=field, files=files, download=False)
    except ValueError:
        return path
    wanted = sorted({file for pattern in files for file in found.glob(pattern)})
    if not local and sum(file.stat().st_size for file in wanted) > COPIED:
        return path
    (folder / place).mkdir()
    for file in [*wanted, *found.glob("README.md"), *found.glob("LICENSE*")]:
        shutil.copyfile(file, folder / place / file.name)
    return place


def kept(path: str, folder: Path, *, place: str) -> str:
    """The inverse of `keep`: the path of the copy, where the folder holds one."""
    return str(folder / place) if path == place else path
