"""Named complete configurations. Each docstring gives the command, the machine, the run time and the result."""

from collections.abc import Callable

from monoformer.config.run import RunConfig
from monoformer.presets.language import monoformer_mini_text, scenes_text, shakespeare, text_quick
from monoformer.presets.latents import flickr8k, scenes_latent
from monoformer.presets.monoformer import monoformer_imagenet256, monoformer_t2i, monoformer_understanding
from monoformer.presets.small import (
    autoencoder,
    cifar10,
    emoji,
    finetune,
    folder,
    monoformer_mini,
    scenes,
    scenes_quick,
)
from monoformer.presets.transfusion import SIZES, transfusion

__all__ = ["PRESETS", "autoencoder"]

PRESETS: dict[str, Callable[[], RunConfig]] = {
    "scenes-quick": scenes_quick,
    "scenes": scenes,
    "text-quick": text_quick,
    "scenes-text": scenes_text,
    "shakespeare": shakespeare,
    "cifar10": cifar10,
    "emoji": emoji,
    "monoformer-mini": monoformer_mini,
    "monoformer-mini-text": monoformer_mini_text,
    "scenes-latent": scenes_latent,
    "flickr8k": flickr8k,
    "folder": folder,
    "finetune": finetune,
    "monoformer-imagenet256": monoformer_imagenet256,
    "monoformer-t2i": monoformer_t2i,
    "monoformer-understanding": monoformer_understanding,
    **{f"transfusion-{size}": transfusion(size) for size in SIZES},
    **{f"transfusion-{size}-unet": transfusion(size, unet=True) for size in SIZES},
}
"""All presets by name."""
