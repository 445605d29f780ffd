"""What a trained autoencoder gives back: figures for each source, a picture, and the folder that is released.

Knows nothing of training. Invariant: figures and pictures come from held-out data wherever a source holds some out.
"""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monoformer.autoencoder import LatentAutoencoder, Pixels
from monoformer.config.autoencoder import AutoencoderRun
from monoformer.config.data import MixtureData, SourceConfig
from monoformer.config.run import to_json
from monoformer.data.build import build_held_out, names_of
from monoformer.data.source import usable
from monoformer.document import Image
from monoformer.files import whole_folder
from monoformer.gallery import Cell, Section, draw_gallery
from monoformer.train.autoencoder import build_network, build_pictures, decibels
from monoformer.train.loop import Sample

FIGURES = 200
"""Held-out pictures of each source that figures are taken over."""
SHOWN = 6
"""Pictures of each source that are shown."""
MOST_READ = 100
"""Documents read for each picture wanted: some have none."""
MEASURED = 256
"""Training pictures whose latents set the scale."""


def held_out(config: AutoencoderRun, count: int) -> dict[str, Tensor]:
    """Pictures (count, 3, H, W) of each source by its name; of training data where nothing is held out."""
    sources = config.data.sources if isinstance(config.data, MixtureData) else (config.data,)
    pairs = zip(names_of(sources), sources, strict=True)
    return {name: _pictures(source, count, config.seed) for name, source in pairs}


def _pictures(config: SourceConfig, count: int, seed: int) -> Tensor:
    documents = usable(build_held_out(config, seed=seed), MOST_READ * count)
    images = (image.pixels for document in documents for image in document.images)
    found = list(islice(images, count))
    if not found:
        raise ValueError("an autoencoder trains on pictures, but one of the data's sources has none; leave it out")
    return torch.stack(found)


def reconstruct(network: Any, pixels: Tensor) -> Tensor:
    """uint8 pictures (N, 3, H, W) through the network and back, as a model reads and draws them."""
    autoencoder = LatentAutoencoder(network)
    return autoencoder.decode(autoencoder.encode(pixels)).cpu()


def show(network: Any, pictures: dict[str, Tensor], title: str) -> Any:
    """Before and after of a few pictures of each source, as one PIL picture."""
    sections = []
    for name, pixels in pictures.items():
        before = pixels[:SHOWN]
        after = reconstruct(network, before)
        pairs = zip(before, after, decibels((before.float() - after.float()) / 255), strict=True)
        cells = [Cell((Image(pixels=x).to_pil(), Image(pixels=y).to_pil()), f"{psnr:.1f} dB") for x, y, psnr in pairs]
        sections.append(Section(f"{name}: {title}", tuple(cells)))
    return draw_gallery(sections)


def build_sample(config: AutoencoderRun) -> Sample:
    """Draws the same held-out pictures with the averaged weights into the run's samples/ folder."""
    network, pictures = build_network(config), held_out(config, SHOWN)

    def sample(step: int, weights: dict[str, Tensor]) -> Path:
        network.load_state_dict(weights)
        folder = config.path / "samples"
        folder.mkdir(exist_ok=True)
        grid = folder / f"step-{step:08d}.png"
        show(network, pictures, f"step {step}").save(grid)
        return grid

    return sample


def release(config: AutoencoderRun, weights: dict[str, Tensor]) -> Path:
    """Write the run's `model` folder: weights in bf16, their own scale and shift, README.md with figures, a picture."""
    network = build_network(config)
    network.load_state_dict(weights)
    network.eval().requires_grad_(requires_grad=False)
    for parameter in network.parameters():
        parameter.data = parameter.to(torch.bfloat16).float()  # as they will be read
    mean, deviation = measure(network, config)
    network.register_to_config(scaling_factor=1 / deviation, shift_factor=mean)
    with whole_folder(config.model_path) as folder:
        pictures, figures = held_out(config, FIGURES), {}
        for name, pixels in pictures.items():
            error = (reconstruct(network, pixels).float() - pixels.float()) / 255
            figures[name] = (float(decibels(error).mean()), float(error.abs().mean()) * 255, len(pixels))
        show(network, pictures, "held-out pictures before and after").save(folder / "reconstructions.png")
        for parameter in network.parameters():
            parameter.data = parameter.to(torch.bfloat16).contiguous()  # training may have laid them out channels last
        network.save_pretrained(folder, safe_serialization=True)
        size = (folder / "diffusion_pytorch_model.safetensors").stat().st_size
        count = sum(p.numel() for p in network.parameters())
        card = _card(config, figures, parameters=count, size=size, scale=(mean, deviation))
        (folder / "README.md").write_text(card, encoding="utf-8")
    return config.model_path


@torch.no_grad()
def measure(network: Any, config: AutoencoderRun) -> tuple[float, float]:
    """Mean and deviation of the latents' samples over training pictures, in fp64."""
    loader = build_pictures(config)
    sums = torch.zeros(3, dtype=torch.float64)
    seen = 0
    while seen < MEASURED:
        pixels = torch.stack([picture.pixels for picture in next(loader)])
        posterior = network.encode(Pixels().encode(pixels)).latent_dist
        mean, variance = posterior.mean.double(), posterior.var.double()
        sums += torch.stack([mean.sum(), (mean.square() + variance).sum(), torch.tensor(float(mean.numel()))])
        seen += len(pixels)
    loader.close()
    mean, square = (sums[:2] / sums[2]).tolist()
    return mean, (square - mean**2) ** 0.5


def _card(
    config: AutoencoderRun,
    figures: dict[str, tuple[float, float, int]],
    *,
    parameters: int,
    size: int,
    scale: tuple[float, float],
) -> str:
    """Markdown: what it is, how well it reconstructs, how to use it."""
    rows = "".join(
        f"| {name} | {psnr:.1f} | {error:.2f} | {count} |\n" for name, (psnr, error, count) in figures.items()
    )
    return f"""---
library_name: diffusers
tags: [autoencoder]
---
# {config.name}

A small `AutoencoderKL`: {config.channels} channels, {config.down} pixels to a cell, {parameters / 1e6:.2f}M parameters,
{size / 1e6:.1f} MB in bf16. Trained by `monoformer train autoencoder` for {config.train.steps} steps of
{config.train.rows} {f"pieces of {config.crop}x{config.crop} pixels" if config.crop else "pictures"}; averaged weights.

| held-out pictures | PSNR (dB, mean over pictures) | mean absolute error (of 255) | pictures |
|---|---|---|---|
{rows}
![before and after](reconstructions.png)

The latents have mean {scale[0]:.4f} and deviation {scale[1]:.4f}; `config.json` holds the `shift_factor` and
`scaling_factor` that bring them to 0 and 1.

```
monoformer train PRESET --autoencoder.path FOLDER --model.channels {config.channels} --model.down {config.down} \\
  --model.patch 2
```

## Limits

It knows the pictures that it was trained on; photographs come back blurred. Say here what data it saw, and under which
licences.

## Training configuration

```json
{json.dumps(to_json(config), indent=1)}
```
"""
