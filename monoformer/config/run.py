"""One complete run, and its JSON form.

The JSON form of a dataclass is an object of its fields; a member of a union also carries `"kind"`, its class name.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.data import DataConfig, ScenesData, SequenceConfig, TokenizerConfig, caches
from monoformer.config.diffusion import DiffusionConfig, FlowConfig, check_variance
from monoformer.config.generate import GenerateConfig, check_sampler
from monoformer.config.model import ModelConfig
from monoformer.config.spelling import hint
from monoformer.config.train import TrainConfig
from monoformer.config.vision import VisionConfig

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a training run depends on; written into the run's folder and every checkpoint."""

    name: str = "run"
    """Name of the run: its folder is runs/NAME unless `folder` says otherwise."""
    folder: str = ""
    """The run's folder; empty: runs/NAME."""
    start: str = ""
    """What to start from (`--from` is the same): a model folder, whose weights, tokenizer, shape and way of denoising
    are taken; or a language model of the LLaMA family, Hugging Face folder or hub name, whose weights, tokenizer (but
    for `tokenizer.path`) and text side of the shape are taken, while patch, time, image head and context are the run's.
    Empty: from nothing."""
    seed: int = 0
    """Seed of the weights, the order of documents, dropping, times and noise."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network's shape."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """What stands between pictures and latents: nothing, unless it names an autoencoder."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """What reads the pictures that the model only looks at: the model itself, unless it names a vision encoder."""
    diffusion: DiffusionConfig = field(default_factory=FlowConfig)
    """How images are noised and what is predicted."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Where token ids come from."""
    data: DataConfig = field(default_factory=ScenesData)
    """What is read."""
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    """How documents are laid out and packed."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training loop."""
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    """Defaults of writing and drawing, saved with the model. In a run from a model folder, those that are left as
    they are here are that model's own (`finetune` leaves them all)."""

    def __post_init__(self) -> None:
        if self.sequence.row > self.model.context:
            raise ValueError(
                f"sequence.row = {self.sequence.row} is longer than model.context = {self.model.context}; "
                f"raise --model.context or lower --sequence.row"
            )
        check_variance(self.diffusion, learned=self.model.learned_variance)
        check_sampler(self.generate, self.diffusion)
        if self.train.freeze == "text" and not self.start:
            raise ValueError("train.freeze = text keeps the text path of a model to start from; give one with --from")
        if self.train.lora.rank and not self.start:
            raise ValueError("train.lora adapts the matrices of a model to start from; give one with --from")
        if self.train.starting_values == "official" and self.model.image_patches == "unet":
            raise ValueError(
                "train.starting_values = official are those of MonoFormer's released code, which has no U-Net; "
                "leave them 'ours', or take --model.image-patches linear"
            )
        if self.sequence.noise_limit and (self.vision.path or self.model.vision_width):
            raise ValueError(
                f"sequence.noise_limit = {self.sequence.noise_limit} makes pictures before their caption targets, "
                f"which a vision encoder never reads; set it to 0, or leave out --vision.path"
            )
        if self.vision.path and caches(self.data):
            raise ValueError(
                f"{caches(self.data)[0].root} holds latents alone, but the vision encoder of --vision.path reads "
                f"pixels; train on the pictures themselves, or leave out --vision.path"
            )
        if not self.start and not self.vision.path and self.model.vision_width:
            raise ValueError(
                f"model.vision_width = {self.model.vision_width} is a vision encoder's; "
                f"give --vision.path, or leave it 0"
            )
        if not self.start and not self.autoencoder.path and (self.model.channels, self.model.down) != (3, 1):
            raise ValueError(
                f"model.channels = {self.model.channels} and model.down = {self.model.down} are a latent's, but pixels "
                f"have 3 and 1; give --autoencoder.path, or --model.channels 3 --model.down 1"
            )

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.folder) if self.folder else Path("runs") / self.name

    @property
    def model_path(self) -> Path:
        """Where the run leaves its finished model."""
        return self.path / "model"


OPEN = ("MODEL", "LANGUAGE_MODEL")
"""What stands in presets for the model that they go on from, which only the user can name."""


def check_start(config: RunConfig) -> None:
    """Refuse a run whose model to start from nobody named."""
    if config.start in OPEN and not Path(config.start).exists():
        what = config.start.lower().replace("_", " ")
        raise ValueError(f"this run goes on from a {what}, but none is named; give --from {config.start}")


def to_json(value: Any) -> Any:
    """Plain JSON data of a configuration (dataclasses, tuples, numbers, strings)."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], data: Any, *, where: str = "config") -> T:
    """The configuration of type `kind` in `data`.

    Raises ValueError for an unknown field (with the nearest right one) or a value of the wrong type.
    """
    return typing.cast(T, _decode(kind, data, where))


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(kind), data, where)
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise ValueError(f"{where} must be a list, but is {data!r}")
        arguments = typing.get_args(kind)
        inner = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(data):
            raise ValueError(f"{where} must have {len(inner)} entries, but has {len(data)}")
        return tuple(_decode(t, item, f"{where}[{i}]") for i, (t, item) in enumerate(zip(inner, data, strict=True)))
    if origin is typing.Literal:
        if data not in typing.get_args(kind):
            raise ValueError(f"{where} must be one of {', '.join(map(repr, typing.get_args(kind)))}, but is {data!r}")
        return data
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), data, where)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"{where} must be {kind.__name__}, but is {data!r}")
    return data


def _decode_union(members: tuple[type, ...], data: Any, where: str) -> Any:
    names = {member.__name__: member for member in members}
    if not isinstance(data, dict) or data.get("kind") not in names:
        given = data.get("kind") if isinstance(data, dict) else data
        raise ValueError(f'{where} needs a "kind" among {", ".join(names)}, but has {given!r}')
    return _decode_dataclass(names[data["kind"]], data, where)


def _decode_dataclass(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object, but is {data!r}")
    if data.get("kind", kind.__name__) != kind.__name__:
        raise ValueError(f"{where} must be of kind {kind.__name__}, but is {data['kind']!r}")
    hints = typing.get_type_hints(kind)
    for name in data:
        if name != "kind" and name not in hints:
            raise ValueError(
                f"{where} has no field {name!r}; {hint(name, hints, otherwise='fields are ' + ', '.join(hints))}"
            )
    for own in dataclasses.fields(kind):
        needed = own.default is dataclasses.MISSING and own.default_factory is dataclasses.MISSING
        if needed and own.name not in data:
            raise ValueError(f"{where} lacks {own.name!r}")
    return kind(**{name: _decode(hints[name], data[name], f"{where}.{name}") for name in data if name != "kind"})


def load_config(path: Path) -> RunConfig:
    """The run configuration in a JSON file. Raises ValueError when it is missing, broken or contradicts itself."""
    return load_config_of(RunConfig, path)


def load_config_of(kind: type[T], path: Path) -> T:
    """`load_config` for any kind of run."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"configuration file {path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    return from_json(kind, data, where=str(path))


def save_config(config: Any, path: Path) -> None:
    """Write the JSON form."""
    path.write_text(json.dumps(to_json(config), indent=2) + "\n", encoding="utf-8")
