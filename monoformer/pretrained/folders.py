"""Model folders: `config.json`, `model.safetensors` (sharded with an index when large), tokenizer files, a card.

The folder alone rebuilds the model. Only safetensors, never pickle; no code from a folder is run. Folders carry a
`format_version`; version 1 must load for ever (`tests/golden`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from monoformer.autoencoder import keep_autoencoder, kept_autoencoder
from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.data import SequenceConfig
from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig, check_variance
from monoformer.config.generate import CHOOSING, GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.config.run import from_json, to_json
from monoformer.config.sources import Shape
from monoformer.config.vision import VisionConfig
from monoformer.files import whole_folder
from monoformer.model.monoformer import MonoFormer
from monoformer.pretrained.recipe import Recipe
from monoformer.pretrained.weights import (
    Weights,
    find_folder,
    halved,
    read_description,
    refuse_official,
    save_weights,
)
from monoformer.sequence import Sequencer
from monoformer.tokenizer import Tokenizer
from monoformer.vision import keep_vision, kept_vision

FORMAT_VERSION = 1


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
    vision: VisionConfig = field(default_factory=VisionConfig)
    """What reads its context images; `vision` as a path is the folder's own copy."""
    picture_shape: Shape = "crop"
    """How pictures that are read get one of the model's sizes: as in training."""

    def __post_init__(self) -> None:
        check_variance(self.diffusion, learned=self.model.learned_variance)


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model with all that reading, writing and drawing need."""

    model: MonoFormer
    tokenizer: Tokenizer
    diffusion: DiffusionConfig
    generate: GenerateConfig
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    picture_shape: Shape = "crop"

    def sequencer(self, config: SequenceConfig | None = None) -> Sequencer:
        """What lays documents out for this model."""
        return build_sequencer(self.model.config, self.tokenizer, config or SequenceConfig())


def build_sequencer(model: ModelConfig, tokenizer: Tokenizer, config: SequenceConfig) -> Sequencer:
    """The sequencer of a model's shape and a tokenizer."""
    return Sequencer(
        tokenizer=tokenizer,
        time_token=model.has_time_token,
        cell=model.cell,
        two_way=model.image_attention == "two-way",
        vision_grid=model.vision_grid,
        config=config,
    )


def save_pretrained(
    folder: str | Path, pretrained: Pretrained, *, weights: Mapping[str, Tensor] | None = None, card: str = ""
) -> None:
    """Write a model folder, complete or not at all. `weights` replaces the model's own (an EMA).

    Weights that bf16 holds exactly, such as those of a folder in bf16 that was loaded in fp32, are written in it.
    Raises ValueError where something else than a model stands in that place.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; name a folder for the model")
    if folder.exists() and any(folder.iterdir()):
        try:
            read_folder_config(folder)  # only a model is replaced: a mistyped path must not cost anybody their files
        except ValueError as error:
            raise ValueError(f"{folder} holds something else than a model, so name another folder ({error})") from None
    described = {"architectures": ["MonoFormer"], "model_type": "monoformer", "format_version": FORMAT_VERSION}
    state = dict(pretrained.model.state_dict() if weights is None else weights)
    if pretrained.model.config.tie_embeddings:
        state.pop("text_head.weight", None)
    with whole_folder(folder) as temporary:
        config = FolderConfig(
            model=pretrained.model.config,
            diffusion=pretrained.diffusion,
            generate=pretrained.generate,
            autoencoder=keep_autoencoder(pretrained.autoencoder, temporary),
            vision=keep_vision(pretrained.vision, temporary),
            picture_shape=pretrained.picture_shape,
        )
        text = json.dumps({**described, **to_json(config)}, indent=2)
        (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
        save_weights(temporary, halved(state))
        pretrained.tokenizer.save(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def load_pretrained(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> Pretrained:
    """Load a model folder, or the hub's of that name; `dtype` None is that of its text's weights.

    Raises ValueError, saying what is missing or damaged, when it is none.
    """
    pretrained, recipe = read_pretrained(folder)
    if dtype is None:
        dtype = Weights(find_folder(folder)).read("tokens.weight").dtype
    recipe.fill(device=device, dtype=dtype).eval()
    return pretrained


def read_pretrained(folder: str | Path) -> tuple[Pretrained, Recipe]:
    """A model folder but for the weights of its network, and how it gets them; raises as `load_pretrained` does."""
    folder = find_folder(folder)
    config = read_folder_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.size > config.model.vocabulary:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.size} entries but the model only {config.model.vocabulary}; "
            f"the folder's files do not belong together"
        )
    recipe = _folder_recipe(folder, config.model)
    pretrained = Pretrained(
        model=recipe.model,
        tokenizer=tokenizer,
        diffusion=config.diffusion,
        generate=config.generate,
        autoencoder=kept_autoencoder(config.autoencoder, folder),
        vision=kept_vision(config.vision, folder),
        picture_shape=config.picture_shape,
    )
    return pretrained, recipe


def _folder_recipe(folder: Path, config: ModelConfig) -> Recipe:
    with torch.device("meta"):
        model = MonoFormer(config)
    weights = Weights(folder)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    tied = {"text_head.weight"} if config.tie_embeddings else set()
    wrong = sorted(shapes.keys() ^ (weights.files.keys() - tied))
    wrong += [name for name, shape in shapes.items() if name in weights.files and weights.shape(name) != shape]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"the weights in {folder} do not fit its config.json: {wrong[0]}{more}")
    return Recipe(model=model, read={name: partial(weights.read, name, dtype=torch.float32) for name in shapes})


def read_folder_config(folder: Path) -> FolderConfig:
    """The checked `config.json` of a model folder."""
    path = folder / "config.json"
    data = read_description(folder)
    refuse_official(folder, data)
    if data.get("kind") == "RunConfig":
        raise ValueError(f"{folder} is a run that has not made its model yet; its training must go on to the end")
    if data.get("model_type") != "monoformer":
        raise ValueError(f"{path} does not describe a MonoFormer model (model_type is not 'monoformer')")
    version = data.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(f"{path} has format_version {version!r}, newer than {FORMAT_VERSION}; upgrade monoformer")
    generate = data.get("generate")
    if isinstance(generate, dict) and not generate.get("temperature"):  # folders that hold settings without effect
        data["generate"] = {**generate, **CHOOSING}
    for name in ("architectures", "model_type", "format_version", "kind"):
        data.pop(name, None)
    return from_json(FolderConfig, data, where=str(path))
