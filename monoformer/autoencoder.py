"""Pixels to latents and back.

Knows nothing of patches or noise. Invariant: `decode(encode(pixels)) == pixels` for the pixel autoencoder, whose
latent is the image itself. Diffusers' autoencoders come behind the same protocol: frozen, never part of a model's
state, loaded from safetensors alone. Tiles are ours, one way for all: diffusers' differ from class to class, and
AutoencoderTiny's (0.42) take 4 channels for granted.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.model import ModelConfig
from monoformer.hub import keep, kept, locate

Moments: TypeAlias = tuple[Tensor, Tensor | None]
"""Mean and deviation of latents, both (N, C, h, w); no deviation where training takes the mean."""

KINDS = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
"""Classes of diffusers that `config.json` may name."""

CHUNK = 2**20
"""Most pixels in one pass of an autoencoder: 16 pictures of 256 x 256."""

PLACE = "autoencoder"
"""Where a model folder holds its copy."""

FIELD = "autoencoder.path"
FILES = ("config.json", "diffusion_pytorch_model.safetensors*", "diffusion_pytorch_model-*.safetensors")
"""What is needed of an autoencoder's folder."""


class Autoencoder(Protocol):
    """What stands between pictures and what the network reads and draws."""

    channels: int
    down: int
    samples: bool
    """Whether training draws a sample around the mean."""

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> latents (N, channels, H / down, W / down), fp32, about unit scale: their mean."""
        ...

    def moments(self, pixels: Tensor) -> Moments:
        """What `encode` gives, and the deviation of the sample that training takes around it, if it takes one."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, channels, h, w) -> uint8 (N, 3, h * down, w * down)."""
        ...


class Pixels:
    """The identity: latents are pixels in [-1, 1] (JiT, arXiv 2511.13720)."""

    channels = 3
    down = 1
    samples = False

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> float32 in [-1, 1]."""
        return pixels.float() / 127.5 - 1

    def moments(self, pixels: Tensor) -> Moments:
        """The picture itself; no deviation."""
        return self.encode(pixels), None

    def decode(self, latents: Tensor) -> Tensor:
        """Float (N, 3, H, W) -> uint8, clamped and rounded."""
        return ((latents.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class LatentAutoencoder:
    """One of diffusers' autoencoders, frozen, with the scale and shift that its own configuration names.

    Many pictures go through in chunks, large ones in overlapping tiles. It computes in the type of the network's
    weights whatever autocast says; latents are fp32.
    """

    def __init__(self, network: Any, *, sample: bool = False, tile: int = 1024) -> None:
        """`network` is an AutoencoderKL, AutoencoderTiny or AutoencoderDC; `sample` needs one with a posterior."""
        self.kind = _kind(type(network).__name__)
        config = network.config
        widths = config.block_out_channels if self.kind == "AutoencoderKL" else config.encoder_block_out_channels
        self.channels: int = config.latent_channels
        self.down: int = 2 ** (len(widths) - 1)
        self.has_posterior = self.kind == "AutoencoderKL"
        if sample and not self.has_posterior:
            raise ValueError(f"{self.kind} has no posterior to sample from; set autoencoder.posterior to mean")
        if tile % self.down:
            raise ValueError(f"autoencoder.tile must be a multiple of {self.down} pixels here, but is {tile}")
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.samples = sample
        self.scale, self.shift = _scale_and_shift(config, self.kind)
        self._tile = tile

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> fp32 latents (N, channels, H / down, W / down), scaled and shifted."""
        return self.moments(pixels)[0]

    def moments(self, pixels: Tensor) -> Moments:
        """Mean of the latents, and their deviation where training samples."""
        mean, deviation = self.posterior(pixels)
        return mean, deviation if self.samples else None

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> Moments:
        """Mean of the latents, and their deviation where the autoencoder has one."""
        weight = next(self.network.parameters())
        x = Pixels().encode(pixels.to(weight.device)).to(weight.dtype)
        found = self._run(self._encode, x, cell=self.down, made=1)
        scale, shift = self.scale.to(weight.device), self.shift.to(weight.device)
        mean, deviation = found[:, : self.channels], found[:, self.channels :]
        return (mean - shift) * scale, deviation * scale if self.has_posterior else None

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, channels, h, w), of any float type -> uint8 (N, 3, h * down, w * down)."""
        weight = next(self.network.parameters())
        scale, shift = self.scale.to(weight.device), self.shift.to(weight.device)
        z = (latents.to(weight.device).float() / scale + shift).to(weight.dtype)
        return Pixels().decode(self._run(lambda part: self.network.decode(part).sample, z, cell=1, made=self.down))

    def _run(self, function: Callable[[Tensor], Tensor], x: Tensor, *, cell: int, made: int) -> Tensor:
        """`function` over chunks and tiles of x, fp32. A latent's cell is `cell` wide in x and `made` in the result."""
        tile = self._tile // self.down
        height, width = x.shape[-2] // cell, x.shape[-1] // cell
        count = max(1, CHUNK // (min(tile, height) * min(tile, width) * self.down**2))
        with torch.autocast(x.device.type, enabled=False):
            chunks = [in_tiles(function, chunk, tile=tile, cell=cell, made=made) for chunk in x.split(count)]
        return torch.cat(chunks)

    def _encode(self, x: Tensor) -> Tensor:
        """Means, then deviations where there are any, on the channel axis."""
        found = self.network.encode(x)
        match self.kind:
            case "AutoencoderKL":
                posterior = found.latent_dist
                return torch.cat([posterior.mean, posterior.std], dim=1)
            case "AutoencoderTiny":
                return found.latents  # type: ignore[no-any-return]
            case _:
                return found.latent  # type: ignore[no-any-return]


def in_tiles(function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, cell: int, made: int) -> Tensor:
    """`function` over x (N, C, H, W) in tiles of `tile` cells that overlap by a quarter, blended linearly; fp32.

    A cell is `cell` wide in x and `made` wide in the result. What fits into one tile is computed whole.
    """
    height, width = x.shape[-2] // cell, x.shape[-1] // cell
    if max(height, width) <= tile:
        return function(x).float()
    total = weight = torch.zeros(())
    for top in _starts(height, tile):
        for left in _starts(width, tile):
            part = function(
                x[..., top * cell : (top + tile) * cell, left * cell : (left + tile) * cell].contiguous()
            ).float()
            window = _ramp(part.shape[-2], tile * made)[:, None] * _ramp(part.shape[-1], tile * made)
            if total.ndim == 0:
                total = part.new_zeros((*part.shape[:2], height * made, width * made))
                weight = part.new_zeros(total.shape[-2:])
            rows = slice(top * made, top * made + part.shape[-2])
            columns = slice(left * made, left * made + part.shape[-1])
            total[..., rows, columns] += part * window.to(part.device)
            weight[rows, columns] += window.to(part.device)
    return total / weight


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin; the last ends with the picture."""
    return sorted({*range(0, max(1, length - tile), max(1, tile * 3 // 4)), max(0, length - tile)})


def _ramp(length: int, tile: int) -> Tensor:
    """Weights along a tile: rising over a quarter of it, falling likewise."""
    distance = torch.arange(length) + 0.5
    return torch.minimum(distance, length - distance).clamp(max=tile / 4)


def build_autoencoder(
    config: AutoencoderConfig, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Autoencoder:
    """The autoencoder that a configuration names. Raises ValueError when it cannot be found or loaded."""
    if not config.path:
        return Pixels()
    network = load_network(locate(config.path, field=FIELD, files=FILES), dtype=dtype)
    network = network.to(device, memory_format=torch.channels_last)  # a CPU encodes in 22 to 32% less time
    return LatentAutoencoder(network, sample=config.posterior == "sample", tile=config.tile)


def load_network(folder: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """Diffusers' module in a folder: its class from `config.json`, its weights from safetensors, nothing left new."""
    diffusers = import_diffusers()
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = _kind(described.get("_class_name") if isinstance(described, dict) else None)
        network, found = getattr(diffusers, kind).from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except FileNotFoundError:
        raise ValueError(f"{folder} is no autoencoder: it has no config.json") from None
    except Exception as error:  # whatever diffusers and safetensors raise for damaged files
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the autoencoder in {folder} cannot be loaded: {cause}") from None
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *map(str, found["mismatched_keys"])]
    if wrong:
        raise ValueError(f"the weights of the autoencoder in {folder} do not fit its config.json: {wrong[0]}")
    return network


def import_diffusers() -> Any:
    """The package. Raises ValueError, naming the extra to install, where it is absent."""
    try:
        import diffusers
    except ImportError:
        raise ValueError("latents need diffusers; install it with: pip install 'monoformer[autoencoders]'") from None
    return diffusers


def check_fits(autoencoder: Autoencoder, model: ModelConfig) -> None:
    """Refuse a model that was not shaped for these latents."""
    if (autoencoder.channels, autoencoder.down) != (model.channels, model.down):
        raise ValueError(
            f"the autoencoder's latents have {autoencoder.channels} channels and a cell for {autoencoder.down} pixels, "
            f"but model.channels is {model.channels} and model.down is {model.down}; "
            f"give its own autoencoder, or set --model.channels {autoencoder.channels} --model.down {autoencoder.down}"
        )


def keep_autoencoder(config: AutoencoderConfig, folder: Path) -> AutoencoderConfig:
    """Copy the autoencoder into a model folder (`hub.keep`); what the folder's `config.json` says of it."""
    return replace(config, path=keep(config.path, folder, place=PLACE, field=FIELD, files=FILES))


def kept_autoencoder(config: AutoencoderConfig, folder: Path) -> AutoencoderConfig:
    """The inverse of `keep_autoencoder`: the path of the copy, where the folder holds one."""
    return replace(config, path=kept(config.path, folder, place=PLACE))


def _kind(name: object) -> str:
    if name not in KINDS:
        raise ValueError(f"an autoencoder of class {name!r} is unknown; there are {', '.join(KINDS)}")
    return str(name)


def _scale_and_shift(config: Any, kind: str) -> tuple[Tensor, Tensor]:
    """latent = (z - shift) * scale, each (C or 1, 1, 1); some AutoencoderKL name a mean and a deviation a channel."""
    scale, shift = torch.tensor([config.scaling_factor]), torch.zeros(1)
    match kind:
        case "AutoencoderKL" if config.latents_mean is not None and config.latents_std is not None:
            scale, shift = scale / torch.tensor(config.latents_std), torch.tensor(config.latents_mean)
        case "AutoencoderKL" | "AutoencoderTiny":
            shift = torch.tensor([config.shift_factor or 0.0])
        case _:
            pass
    return scale[:, None, None], shift[:, None, None]
