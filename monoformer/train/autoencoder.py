"""Training of a small autoencoder: diffusers' AutoencoderKL on every image of a stream of documents.

    loss = mean |y - x| + kl_weight * KL(posterior, standard normal) / values of a picture + perceptual term

(arXiv 2112.10752 without its critic). Knows nothing of what the latents are for. Invariant: a run killed at any moment
and started again ends with the same bits; the posterior's samples are keyed by document and image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from monoformer.autoencoder import Pixels, import_diffusers
from monoformer.config.autoencoder import AutoencoderRun
from monoformer.data.build import build_source
from monoformer.data.loader import Loader
from monoformer.data.skipped import BadDocument
from monoformer.data.windows import Numbered
from monoformer.device import choose
from monoformer.randomness import generator
from monoformer.train.checkpoint import TrainState
from monoformer.train.loop import Loop, Numbers, Sample
from monoformer.train.optim import EMA, build_optimizers
from monoformer.train.precision import computes_in_bf16
from monoformer.train.settled import settled
from monoformer.train.sizes import picture_sizes

Features: TypeAlias = Callable[[Tensor], Tensor | list[Tensor]]
"""Pictures (N, 3, H, W) in [-1, 1] -> feature maps (N, C, h, w)."""

WINDOW = 64
"""Documents read together."""

CURVES = (("l1_loss", "mean absolute error"), ("psnr", "PSNR (dB)"), ("images_per_second", "images / s"))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image of a document."""

    document: int
    number: int
    pixels: Tensor
    """uint8 (3, H, W)."""


def build_network(config: AutoencoderRun) -> Any:
    """A new AutoencoderKL, its weights drawn from the seed. Raises ValueError for pictures that do not fit it."""
    levels, kind = len(config.widths), import_diffusers().AutoencoderKL
    with torch.device("meta"):  # no memory, and no draw from the global generator
        network = kind(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.widths,
            layers_per_block=1,
            latent_channels=config.channels,
            norm_num_groups=config.groups,
            sample_size=picture_side(config),
            mid_block_add_attention=False,
        )
    network.to_empty(device="cpu")
    initialize(network, generator(config.seed, "weights"))
    return network.to(memory_format=torch.channels_last)  # on a CPU a step takes 1.33 instead of 1.71 s


@torch.no_grad()
def initialize(network: nn.Module, random: torch.Generator) -> None:
    """Convolutions uniform by their fan-in (torch's own rule), norms at 1 and 0."""
    for module in network.modules():
        match module:
            case nn.Conv2d():
                bound = 1 / math.sqrt(module.weight[0].numel())
                module.weight.uniform_(-bound, bound, generator=random)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=random)
            case nn.GroupNorm():
                module.weight.fill_(1)
                module.bias.zero_()
            case _:
                assert not list(module.parameters(recurse=False)), f"{type(module).__name__} would stay empty"


def picture_side(config: AutoencoderRun) -> int:
    """Side in pixels of the training pictures: one, and a multiple of the latent's cell."""
    sizes = picture_sizes(config.data)
    side = min(sizes)[0] if sizes else 0
    if sizes != {(side, side)} or side < 1 or side % config.down:
        raise ValueError(
            f"an autoencoder trains on pictures of one size, a multiple of {config.down} pixels, but data.size is "
            f"{', '.join(f'{height}x{width}' for height, width in sorted(sizes)) or 'missing'}"
        )
    if config.crop > side:
        raise ValueError(f"crop is {config.crop} pixels, but pictures are {side}x{side}; crop less, or 0 for all")
    return side


def build_pictures(config: AutoencoderRun) -> Loader[list[Picture]]:
    """The stream of batches of pictures."""

    def pack(documents: Numbered) -> tuple[list[Picture], dict[int, BadDocument]]:
        pictures = [
            Picture(document=number, number=place, pixels=cut(image.pixels, config.crop, (config.seed, number, place)))
            for number, document in documents
            for place, image in enumerate(document.images, start=1)
        ]
        return pictures, {}

    source = build_source(config.data, split="train", seed=config.seed, readers=config.train.readers)
    limit = config.train.skip_limit
    return Loader(source, pack, list, window=WINDOW, rows=config.train.rows, skip_limit=limit)


def cut(pixels: Tensor, side: int, key: tuple[int, ...]) -> Tensor:
    """A square of the picture (3, H, W) at a place drawn from its key; all of it at side 0."""
    if not side:
        return pixels
    random = generator(*key, "crop")
    top, left = (int(torch.randint(size - side + 1, (), generator=random)) for size in pixels.shape[-2:])
    return pixels[:, top : top + side, left : left + side]


def is_hidden_kernel(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains it: the convolutions between the first and the last of encoder and decoder."""
    return parameter.ndim == 4 and not any(part in name for part in ("conv_in", "conv_out", "quant_conv"))


def build_features(path: str, device: torch.device) -> Features | None:
    """The frozen perceptual module that MODULE:FUNCTION makes; None where none is named."""
    if not path:
        return None
    from importlib import import_module

    name, _, function = path.partition(":")
    try:
        module = getattr(import_module(name), function)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"perceptual is {path!r}, which gives no module ({error}); write MODULE:FUNCTION") from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"perceptual is {path!r}, which gave {type(module).__name__}, not a torch module")
    return module.eval().requires_grad_(requires_grad=False).to(device)


def perceptual_distance(features: Features, y: Tensor, x: Tensor) -> Tensor:
    """Mean squared distance of feature vectors of unit length (LPIPS without its learned weights, arXiv 1801.03924)."""
    first, second = features(y), features(x)
    firsts, seconds = ([maps] if isinstance(maps, Tensor) else maps for maps in (first, second))
    pairs = list(zip(firsts, seconds, strict=True))
    unit = [(nn.functional.normalize(a, dim=1), nn.functional.normalize(b, dim=1)) for a, b in pairs]
    return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in unit]).mean()


class AutoencoderTrainer:
    """Trains one autoencoder; `sample(step, averaged weights)` draws whatever somebody wants to see meanwhile."""

    def __init__(self, config: AutoencoderRun, *, sample: Sample | None = None) -> None:
        self.device = choose(config.train.device)
        self.config = config = settled(config, device=self.device)
        self.network = build_network(config).to(self.device)
        self.features = build_features(config.perceptual, self.device)
        self.loader = build_pictures(config)
        optimizers = build_optimizers(self.network, config.train, hidden=is_hidden_kernel)
        self.state = TrainState(model=self.network, ema=EMA(self.network), optimizers=optimizers)
        self.loop: Loop[list[Picture]] = Loop(config, self.state, describe=describe, sample=sample, curves=CURVES)
        self.bf16 = computes_in_bf16(config.train, self.device)

    def train_step(self, pictures: list[Picture]) -> Numbers:
        """One optimiser step; its losses."""
        values = self.losses(pictures)
        loss = values["l1_loss"] + self.config.perceptual_weight * values.get("perceptual_loss", torch.zeros(()))
        size = pictures[0].pixels.numel() / (self.config.channels * self._cells(pictures[0].pixels))
        (loss + self.config.kl_weight * values["kl"] / size).backward()  # type: ignore[no-untyped-call]
        return {**{name: float(value.detach()) for name, value in values.items()}, "gradient_norm": self.loop.descend()}

    def losses(self, pictures: list[Picture]) -> dict[str, Tensor]:
        """Mean absolute error, KL (nats a value of the latent), PSNR, and the perceptual distance if there is one."""
        x = Pixels().encode(torch.stack([picture.pixels for picture in pictures]).to(self.device))
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            posterior = self.network.encode(x).latent_dist
            keys = [(self.config.seed, p.document, p.number, "posterior") for p in pictures]
            noise = torch.stack([torch.randn(posterior.mean.shape[1:], generator=generator(*key)) for key in keys])
            y = self.network.decode(posterior.mean + posterior.std * noise.to(self.device)).sample
        error = y.float() - x
        values = {
            "l1_loss": error.abs().mean(),
            "kl": posterior.kl().float().mean() / posterior.mean[0].numel(),
            "psnr": decibels(error.detach() / 2).mean(),
        }
        if self.features is not None:
            values["perceptual_loss"] = perceptual_distance(self.features, y.float(), x)
        return values

    def run(self) -> bool:
        """Train to the last step, resuming what the folder holds. False: stopped early, saved, ready to go on."""
        return self.loop.run(self.loader, lambda read: self.train_step(*read), count)

    def _cells(self, pixels: Tensor) -> int:
        return pixels.shape[-2] * pixels.shape[-1] // self.config.down**2


def count(read: list[list[Picture]]) -> tuple[Numbers, Numbers]:
    """What a step read: pictures, to be a rate."""
    return {}, {"images_per_second": float(sum(len(pictures) for pictures in read))}


def describe(line: Numbers) -> str:
    """The progress bar's numbers."""
    return f"L1 {line['l1_loss']:.4f}  {line['psnr']:.1f} dB  {line['images_per_second']:.1f} images/s"


def decibels(error: Tensor) -> Tensor:
    """PSNR (N,) of errors (N, ...) on the scale where pictures span 1; at most 100."""
    return -10 * error.float().square().flatten(1).mean(dim=1).clamp(min=1e-10).log10()
