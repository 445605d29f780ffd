"""Pictures that are only looked at, to features: a frozen CLIP, SigLIP or DINO of transformers.

Knows nothing of tokens, or of the projection that makes features tokens (`model/patches.py:VisionEmbedding`).
Invariants: the encoder is never part of a model's state; its features are the second-last hidden states that
transformers gives, one vector a patch, without class and register tokens. Loaded from safetensors alone.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monoformer.config.model import ModelConfig
from monoformer.config.vision import VisionConfig
from monoformer.hub import keep, kept, locate

KINDS = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "vit": "ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}
"""Classes of transformers by the `model_type` of `config.json`, where the first DINO is a `vit`; of CLIP and SigLIP the
vision half is read."""

RESAMPLINGS = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers."""

CHUNK = 2**20
"""Most pixels in one pass of an encoder: 20 pictures of 224 x 224."""

PLACE, FIELD = "vision", "vision.path"
FILES = ("config.json", "preprocessor_config.json", "model.safetensors*", "model-*.safetensors")
"""What is needed of an encoder's folder; PLACE is where a model folder holds its copy."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What an encoder's `preprocessor_config.json` does to a picture: resize, crop the centre, scale, normalise."""

    resized: tuple[int, int] | int
    """Height and width after resizing, or the shorter side."""
    size: tuple[int, int]
    """Height and width of what the encoder sees: `resized`, or the centre of it."""
    mode: str
    """Filter of the resizing."""
    mean: tuple[float, ...]
    """Of each channel, in [0, 1]."""
    deviation: tuple[float, ...]
    """Of each channel, likewise."""
    levels: float = 255.0
    """What the levels are divided by."""

    def __post_init__(self) -> None:
        if isinstance(self.size, int):
            raise ValueError("it makes pictures of several sizes: it resizes the shorter side and crops nothing")
        sides = (self.resized, self.resized) if isinstance(self.resized, int) else self.resized
        if min(self.size) < 1 or sides[0] < self.size[0] or sides[1] < self.size[1]:
            raise ValueError(f"it cuts {self.size[0]}x{self.size[1]} pixels out of {sides[0]}x{sides[1]}")
        if len(self.mean) != 3 or len(self.deviation) != 3:
            raise ValueError(f"it has means {self.mean} and deviations {self.deviation}, not three of each")

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> fp32 (N, 3, *size); resized as PIL does, to within one level."""
        height, width = pixels.shape[-2:]
        wanted = self.resized
        if isinstance(wanted, int):
            side, short = wanted, min(height, width)
            wanted = (int(side * height / short), int(side * width / short))
        x = pixels.float()
        for sides in ((height, wanted[1]), wanted):  # as PIL: width first, whole levels after each side, halves go up
            x = F.interpolate(x, sides, mode=self.mode, align_corners=False, antialias=True)
            x = (x + 0.5).floor().clamp(0, 255)
        top, left = (wanted[0] - self.size[0]) // 2, (wanted[1] - self.size[1]) // 2
        x = x[..., top : top + self.size[0], left : left + self.size[1]] / self.levels
        mean, deviation = (
            torch.tensor(values, device=x.device)[:, None, None] for values in (self.mean, self.deviation)
        )
        return (x - mean) / deviation


class VisionEncoder:
    """One of transformers' vision encoders, frozen, behind its own preparation of pictures.

    It computes in the type of its weights whatever autocast says; features are fp32.
    """

    def __init__(self, network: Any, preparation: Preparation) -> None:
        """`network` is of one of `KINDS`. Raises ValueError when the prepared pictures do not fit it."""
        config = network.config
        is_fixed = not config.model_type.startswith("dino")  # DINOv2 interpolates positions to any size, DINOv3 turns
        if is_fixed and preparation.size != (config.image_size, config.image_size):
            raise ValueError(
                f"preprocessor_config.json makes pictures of {preparation.size[0]}x{preparation.size[1]}, but by "
                f"config.json the encoder sees {config.image_size}x{config.image_size}; they do not belong together"
            )
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.prepare = preparation
        self.width: int = config.hidden_size
        self.grid = (preparation.size[0] // config.patch_size, preparation.size[1] // config.patch_size)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> fp32 features (N, P, width) of the grid's P patches, row by row."""
        weight = next(self.network.parameters())
        count = max(1, CHUNK // (self.prepare.size[0] * self.prepare.size[1]))
        patches = self.grid[0] * self.grid[1]
        found: list[Tensor] = []
        with torch.autocast(weight.device.type, enabled=False):
            for chunk in pixels.to(weight.device).split(count):
                x = self.prepare(chunk).to(weight.dtype)
                states = self.network(pixel_values=x, output_hidden_states=True).hidden_states[-2]
                found.append(states[:, -patches:].float())  # class and register tokens come first
        return torch.cat(found)


def build_vision(
    config: VisionConfig, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> VisionEncoder | None:
    """The encoder that a configuration names, None for none. Raises ValueError when it cannot be found or loaded."""
    if not config.path:
        return None
    folder = locate(config.path, field=FIELD, files=FILES)
    try:
        network = load_network(folder, dtype=dtype)
        return VisionEncoder(network.to(device), read_preparation(folder))
    except ValueError as error:
        raise ValueError(f"{folder} cannot be used as vision encoder: {error}") from None


def load_network(folder: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """The vision half of what a folder holds: its class from `config.json`, no weight left new."""
    import transformers

    kind = _read(folder / "config.json").get("model_type")
    if kind not in KINDS:
        raise ValueError(f"its model_type is {kind!r}; known are {', '.join(KINDS)}")
    spared = {"add_pooling_layer": False} if kind == "vit" else {}  # DINO's weights have none
    try:
        network, found = getattr(transformers, KINDS[kind]).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **spared
        )
    except Exception as error:  # whatever transformers and safetensors raise for damaged files
        raise ValueError((str(error).strip() or type(error).__name__).splitlines()[0]) from None
    if found["missing_keys"]:
        raise ValueError(f"its weights lack {min(found['missing_keys'])}")
    return network


def read_preparation(folder: Path) -> Preparation:
    """What `preprocessor_config.json` asks for, in its older and newer forms; ValueError for what is not known."""
    fields = _read(folder / "preprocessor_config.json")
    crops = fields.get("do_center_crop", False)
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if not fields.get(name, True):
            raise ValueError(f"its preprocessor_config.json has {name} = {fields[name]}, which is not known")
    if fields.get("resample") not in RESAMPLINGS:
        known = " and ".join(f"{number} ({name})" for number, name in RESAMPLINGS.items())
        raise ValueError(f"its preprocessor_config.json has resample = {fields.get('resample')}; known are {known}")
    try:
        resized = _sides(fields["size"], shorter=crops)
        return Preparation(
            resized=resized,
            size=_sides(fields["crop_size"]) if crops else resized,
            mode=RESAMPLINGS[fields["resample"]],
            mean=tuple(map(float, fields["image_mean"])),
            deviation=tuple(map(float, fields["image_std"])),
            levels=round(1 / fields.get("rescale_factor", 1 / 255), 3),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"its preprocessor_config.json lacks {error}, or holds it in an unknown form") from None


def _sides(value: Any, *, shorter: bool = False) -> Any:
    """Height and width, or the shorter side, of a size as it is written: a number of old, names today."""
    if isinstance(value, int):
        return value if shorter else (value, value)
    return value["shortest_edge"] if "shortest_edge" in value else (value["height"], value["width"])


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"it has no {path.name}") from None
    except ValueError as error:
        raise ValueError(f"its {path.name} is damaged: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"its {path.name} holds no JSON object")
    return fields


def fitted(model: ModelConfig, encoder: VisionEncoder | None) -> ModelConfig:
    """The model's shape with the encoder's features, where it leaves them open; refused if shaped for others."""
    if encoder is not None and not model.vision_width:
        return replace(model, vision_width=encoder.width, vision_grid=encoder.grid)
    check_sees(encoder, model)
    return model


def check_sees(encoder: VisionEncoder | None, model: ModelConfig) -> None:
    """Refuse a model that was not shaped for this encoder's features."""
    width, grid = (0, (0, 0)) if encoder is None else (encoder.width, encoder.grid)
    if (model.vision_width, model.vision_grid) != (width, grid):
        raise ValueError(
            f"model.vision_width is {model.vision_width} and model.vision_grid {model.vision_grid}, but "
            f"{f'the vision encoder gives {grid} features of {width}' if encoder else 'there is no vision encoder'}; "
            f"give its own with --vision.path, or a model of that shape"
        )


def keep_vision(config: VisionConfig, folder: Path) -> VisionConfig:
    """Copy the encoder into a model folder (`hub.keep`); what the folder's `config.json` says of it."""
    return replace(config, path=keep(config.path, folder, place=PLACE, field=FIELD, files=FILES))


def kept_vision(config: VisionConfig, folder: Path) -> VisionConfig:
    """The inverse of `keep_vision`: the path of the copy, where the folder holds one."""
    return replace(config, path=kept(config.path, folder, place=PLACE))
