"""Model folders: `config.json`, `model.safetensors` (sharded with an index when large), tokenizer files, a card.

The folder alone rebuilds the model. Only safetensors, never pickle; no code from a folder is run. Folders carry a
`format_version`; version 1 must load for ever (`tests/golden`).
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monoformer.autoencoder import keep_autoencoder, kept_autoencoder
from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.data import SequenceConfig
from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.config.run import from_json, to_json
from monoformer.model.monoformer import MonoFormer
from monoformer.sequence import Sequencer
from monoformer.tokenizer import Tokenizer

FORMAT_VERSION = 1
SHARD_SIZE = "5GB"


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """What a model folder says of itself beside its weights and tokenizer."""

    model: ModelConfig
    """The network's shape."""
    diffusion: FlowConfig | DDPMConfig
    """How it was trained to denoise."""
    generate: GenerateConfig
    """Defaults of writing and drawing."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """What stands between its pictures and latents; `autoencoder` as a path is the folder's own copy."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model with all that reading, writing and drawing need."""

    model: MonoFormer
    tokenizer: Tokenizer
    diffusion: DiffusionConfig
    generate: GenerateConfig
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)

    def sequencer(self, config: SequenceConfig | None = None) -> Sequencer:
        """What lays documents out for this model."""
        return build_sequencer(self.model.config, self.tokenizer, config or SequenceConfig())


def build_sequencer(model: ModelConfig, tokenizer: Tokenizer, config: SequenceConfig) -> Sequencer:
    """The sequencer of a model's shape and a tokenizer."""
    return Sequencer(
        tokenizer=tokenizer,
        time_token=model.time == "token",
        cell=model.cell,
        two_way=model.image_attention == "two-way",
        config=config,
    )


def save_pretrained(
    folder: str | Path, pretrained: Pretrained, *, weights: Mapping[str, Tensor] | None = None, card: str = ""
) -> None:
    """Write a model folder, complete or not at all. `weights` replaces the model's own (an EMA)."""
    from huggingface_hub import save_torch_state_dict

    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        read_folder_config(folder)  # only a model folder is replaced: a mistyped path must not cost anybody their files
    temporary = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    config = FolderConfig(
        model=pretrained.model.config,
        diffusion=pretrained.diffusion,
        generate=pretrained.generate,
        autoencoder=keep_autoencoder(pretrained.autoencoder, temporary),
    )
    described = {"architectures": ["MonoFormer"], "model_type": "monoformer", "format_version": FORMAT_VERSION}
    text = json.dumps({**described, **to_json(config)}, indent=2)
    (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
    state = dict(pretrained.model.state_dict() if weights is None else weights)
    if pretrained.model.config.tie_embeddings:
        state.pop("text_head.weight", None)
    save_torch_state_dict(state, temporary, max_shard_size=SHARD_SIZE, safe_serialization=True)
    pretrained.tokenizer.save(temporary)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def load_pretrained(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Pretrained:
    """Load a model folder. Raises ValueError, saying what is missing or damaged, when it is none."""
    folder = Path(folder)
    config = read_folder_config(folder)
    with torch.device("meta"):
        model = MonoFormer(config.model)
    state = {name: value.to(device=device, dtype=dtype) for name, value in _read_weights(folder).items()}
    if config.model.tie_embeddings:
        state["text_head.weight"] = state.get("tokens.weight", torch.empty(0))
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: {str(error).splitlines()[1].strip()}"
        ) from None
    model.tie()
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.size > config.model.vocabulary:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.size} entries but the model only {config.model.vocabulary}; "
            f"the folder's files do not belong together"
        )
    return Pretrained(
        model=model.eval(),
        tokenizer=tokenizer,
        diffusion=config.diffusion,
        generate=config.generate,
        autoencoder=kept_autoencoder(config.autoencoder, folder),
    )


def read_folder_config(folder: Path) -> FolderConfig:
    """The checked `config.json` of a model folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is no model folder: it has no config.json; give the folder that training or convert wrote"
        )
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(data, dict) or data.get("model_type") != "monoformer":
        raise ValueError(f"{path} does not describe a MonoFormer model (model_type is not 'monoformer')")
    version = data.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(f"{path} has format_version {version!r}, newer than {FORMAT_VERSION}; upgrade monoformer")
    for name in ("architectures", "model_type", "format_version", "kind"):
        data.pop(name, None)
    return from_json(FolderConfig, data, where=str(path))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{index} is damaged ({error}); copy or download it again") from None
    state: dict[str, Tensor] = {}
    for name in names:
        path = folder / Path(name).name
        if not path.is_file():
            raise ValueError(f"{folder} has no {name}; only safetensors weights are loaded")
        try:
            state |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); copy or download it again") from None
    return state
