"""Folders of weights, ours and others': where they are, what they call themselves, their tensors one at a time.

Knows nothing of networks. Invariant: a tensor is in memory once. Only safetensors, never pickle.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHARD_SIZE = "5GB"

DATA_FILES = ["*.json", "*.safetensors", "*.jinja", "*.md", "*.model"]
OTHER_FORMS = ["original/*", "consolidated*"]  # the same weights again, as their makers store them


def find_folder(name: str | Path) -> Path:
    """The model's folder: `name` itself, the model of a run, or what the hub gives out under it (data files alone)."""
    folder = Path(name)
    if (folder / "model" / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        return folder / "model"
    if folder.exists() or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=DATA_FILES, ignore_patterns=OTHER_FORMS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f"{name} is neither a folder here nor a model that the hub gives out: {cause}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError when it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    return data


def read_description(folder: Path) -> dict[str, Any]:
    """A folder's config.json, whose `model_type` is the kind of model. Raises ValueError when there is none."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no model folder: {'it is a file' if folder.exists() else 'there is no such folder'}"
        )
    if not path.is_file():
        raise ValueError(
            f"{folder} is no model folder: it has no config.json; give one that training, convert or transformers wrote"
        )
    return read_json(path)


def is_monoformer(folder: Path) -> bool:
    """Whether a folder holds a model of ours, not one of another layout. Raises ValueError when it holds none."""
    return bool(read_description(folder).get("model_type") == "monoformer")


def refuse_official(folder: Path, description: Mapping[str, Any]) -> None:
    """Say what to do with a checkpoint of the official code where another model is read."""
    if "decoder_t_embed" in description:
        raise ValueError(f"{folder} is a checkpoint of the official code; first: monoformer convert {folder} OUT")


def _from_pickle(folder: Path) -> str:
    """How to make safetensors of a folder that holds pickled weights alone; empty for any other."""
    if not (folder / "pytorch_model.bin").is_file():
        return ""
    return (
        ". From its pytorch_model.bin, if you trust it, in that folder: "
        "python -c \"import torch, safetensors.torch as s; w = torch.load('pytorch_model.bin', weights_only=True); "
        "s.save_file({k: v.clone() for k, v in w.items()}, 'model.safetensors', metadata={'format': 'pt'})\""
    )


class Weights:
    """The safetensors of a folder (one file, or shards with their index), read one tensor at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError, naming the file, when one is missing or damaged."""
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{index} is damaged ({error}); copy or download it again") from None
        self.files: dict[str, Path] = {}
        """Tensor names and the files that hold them."""
        for name in names:
            path = folder / Path(name).name
            if not path.is_file():
                raise ValueError(f"{folder} has no {name}; only safetensors weights are loaded{_from_pickle(folder)}")
            with _opened(path) as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def check_names(self, needed: set[str], *, spare: tuple[str, ...], kind: str) -> None:
        """ValueError unless every needed tensor is there, and no other but those whose names end in one of `spare`."""
        held = {name for name in self.files if not name.endswith(spare)}
        for what, names in (("lacks", needed - held), ("also holds", held - needed)):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise ValueError(f"the checkpoint in {self.folder} {what} {min(names)}{more}; it is no {kind}")

    def shape(self, name: str) -> torch.Size:
        """The shape of a tensor that is not read."""
        with _opened(self.files[name]) as file:
            return torch.Size(file.get_slice(name).get_shape())

    def read(
        self,
        name: str,
        *,
        shape: torch.Size | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """One tensor in memory of its own. The file is opened for it alone, so that what was read before is let go.

        Raises ValueError when it has another shape than the one expected.
        """
        with _opened(self.files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            if shape is not None and tensor.shape != shape:
                raise ValueError(
                    f"{name} in {self.folder} is {tuple(tensor.shape)}, but by its config.json should be {tuple(shape)}"
                )
            return tensor.to(device=device, dtype=tensor.dtype if dtype is None else dtype, copy=True)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from None


def save_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write model.safetensors, sharded with an index when large."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(dict(tensors), folder, max_shard_size=SHARD_SIZE, safe_serialization=True)


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in bf16 where that holds every one of them exactly; else as they are."""

    def is_exact(tensor: Tensor) -> bool:
        return not tensor.is_floating_point() or torch.equal(tensor.to(torch.bfloat16).to(tensor.dtype), tensor)

    if not all(map(is_exact, tensors.values())):  # the first that is not ends it, so that a large model is not copied
        return dict(tensors)
    return {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in tensors.items()}
