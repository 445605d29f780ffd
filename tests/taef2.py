"""TAEF2, a real autoencoder (down 8, 32 channels, 2.7M parameters), through diffusers' AutoencoderTiny.

Diffusers' class lacks the pooling branch of three blocks on each side; this adaptor adds it. A run on its latents:

    python -m tests.taef2 ../shared/data/weights PRESET --autoencoder.path taef2 --model.channels 32 --model.down 8 ...
    python -m tests.taef2 ../shared/data/weights encode PRESET --out CACHE ...      (then: ... --config CACHE/run.json)

The weights are pickles, so the package itself does not read them: `build_run` gets the autoencoder from here, and
`taef2` is only its name. The trained folder draws with `Pipeline.from_pretrained(FOLDER, autoencoder=load(...))`.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monoformer.autoencoder import LatentAutoencoder

POOLED = {"encoder": (11, 12, 13), "decoder": (3, 4, 5)}
"""Blocks with the branch, by their number in the files."""

SCALE, SHIFT = 1.1, 0.058
"""From the latents of 32 of Flickr8k's photographs at 96 pixels: deviation 0.911, mean 0.058."""


class PooledBlock(nn.Module):
    """One of diffusers' blocks behind x + 1x1 convolution, group norm, ReLU, 1x1 convolution."""

    def __init__(self, block: Any, width: int) -> None:
        super().__init__()
        self.conv, self.fuse = block.conv, block.fuse
        self.pool = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.GroupNorm(4, 4 * width),
            nn.ReLU(),
            nn.Conv2d(4 * width, width, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pool(x)
        y: Tensor = self.fuse(self.conv(x) + x)
        return y


def build() -> Any:
    """The network with weights still to come."""
    from diffusers import AutoencoderTiny

    network = AutoencoderTiny(latent_channels=32, scaling_factor=SCALE, shift_factor=SHIFT)
    for side, numbers in POOLED.items():
        layers = getattr(network, side).layers
        for number in numbers:
            place = number - (side == "decoder")  # the files count the clamp that diffusers' decoder has in forward
            layers[place] = PooledBlock(layers[place], 64)
    return network


def load(folder: Path, **options: Any) -> LatentAutoencoder:
    """The autoencoder from `taef2_encoder.pth` and `taef2_decoder.pth` in `folder`, in fp32."""
    network = build()
    for side in POOLED:
        state = torch.load(folder / f"taef2_{side}.pth", weights_only=True)
        first = int(side == "decoder")
        named = {f"{int(name.split('.')[0]) - first}.{name.split('.', 1)[1]}": value for name, value in state.items()}
        getattr(network, side).layers.load_state_dict({name: value.float() for name, value in named.items()})
    return LatentAutoencoder(network, **options)


def on_device(device: torch.device, *, folder: Path) -> LatentAutoencoder:
    """The autoencoder on a device: what every process of `monoformer encode` builds."""
    made = load(folder)
    made.network.to(device)
    return made


def main(arguments: list[str]) -> None:
    """Train a preset on TAEF2's latents, or encode its pictures."""
    from monoformer.cli.encoding import encode
    from monoformer.cli.training import read_config, run
    from monoformer.train.build import build_run

    folder, *rest = arguments
    if rest[:1] == ["encode"]:
        encode(rest[1:], build=partial(on_device, folder=Path(folder)))
        return
    run(build_run(read_config(rest), autoencoder=load(Path(folder))))


if __name__ == "__main__":
    main(sys.argv[1:])
