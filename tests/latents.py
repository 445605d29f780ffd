"""Tiny autoencoders of every class that diffusers has for us, with random weights."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monoformer.randomness import generator

KINDS = ("kl4", "kl8", "kl16", "kl-statistics", "tiny", "dc")
"""`kl-statistics` names a mean and a deviation for each channel, as some releases do."""


def network(kind: str, *, seed: int = 0) -> Any:
    """The module; halves the sides twice, but for `dc`, which does once."""
    import diffusers

    with torch.device("meta"):
        made = _described(diffusers, kind)
    made.to_empty(device="cpu")
    return randomize(made, seed)


def _described(diffusers: Any, kind: str) -> Any:
    match kind:
        case "tiny":
            blocks = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
            counts = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
            return diffusers.AutoencoderTiny(
                latent_channels=4, scaling_factor=0.5, shift_factor=0.25, **blocks, **counts
            )
        case "dc":
            blocks = {"encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16)}
            counts = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
            types = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"}
            scales = {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
            return diffusers.AutoencoderDC(latent_channels=8, scaling_factor=0.7, **blocks, **counts, **types, **scales)
        case _:
            channels = int(kind[2:]) if kind[2:].isdecimal() else 4
            statistics = {"latents_mean": (0.1, 0.2, 0.3, 0.4), "latents_std": (1.0, 2.0, 3.0, 4.0)}
            return diffusers.AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                block_out_channels=(8, 8, 16),
                norm_num_groups=4,
                latent_channels=channels,
                scaling_factor=0.6,
                shift_factor=None if kind == "kl-statistics" else 0.1,
                **(statistics if kind == "kl-statistics" else {}),
            )


@torch.no_grad()
def randomize(made: Any, seed: int) -> Any:
    """Convolutions by their fan-in, norms about 1, small biases."""
    random = generator(seed, "latents")
    for name, value in made.state_dict().items():
        noise = torch.randn(value.shape, generator=random)
        plain = 1.0 if value.ndim == 1 and name.endswith("weight") else 0.0
        value.copy_(noise / value[0].numel() ** 0.5 if value.ndim > 1 else plain + 0.1 * noise)
    return made.eval()


def save(kind: str, folder: Path, *, seed: int = 0) -> str:
    """A folder with such an autoencoder; its path."""
    network(kind, seed=seed).save_pretrained(folder)
    return str(folder)


def pictures(count: int = 3, *, size: tuple[int, int] = (16, 24), seed: int = 0) -> Tensor:
    """Smooth random uint8 pictures (count, 3, H, W)."""
    coarse = torch.rand(count, 3, 4, 4, generator=generator(seed, "pictures"))
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8)


def psnr(first: Tensor, second: Tensor) -> float:
    """Mean over pictures, in dB of 255."""
    error = (first.float() - second.float()).square().flatten(1).mean(1) / 255**2
    return float((-10 * error.clamp(min=1e-10).log10()).mean())


def edges() -> torch.nn.Module:
    """A perceptual module with two feature maps, as `MODULE:FUNCTION` names one."""
    random = generator(0, "edges")
    first, second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 5, stride=2)
    for convolution in (first, second):
        convolution.load_state_dict(
            {n: torch.randn(v.shape, generator=random) for n, v in convolution.state_dict().items()}
        )

    class Edges(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.first(x), self.second(x)]

    return Edges()
