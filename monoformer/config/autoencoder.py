"""What stands between pictures and latents, and how a small autoencoder of one's own is trained."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from monoformer.config.data import DataConfig, ScenesData, caches
from monoformer.config.train import AdamWConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Where latents come from; the autoencoder is frozen and never part of the model's weights."""

    path: str = ""
    """Folder or hub name (OWNER/NAME or OWNER/NAME/SUBFOLDER) of a diffusers autoencoder; empty: the pixels."""
    posterior: Literal["mean", "sample"] = "mean"
    """Whether drawing is learned on the mean of a picture's latents or on a sample; what is read is always the mean."""
    tile: int = 1024
    """Pictures with a longer side go through the autoencoder in overlapping tiles of this side, in pixels."""

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ValueError(f"autoencoder.tile must be at least 1 pixel, but is {self.tile}")
        if not self.path and (self.posterior, self.tile) != ("mean", 1024):
            raise ValueError(
                "autoencoder.posterior and autoencoder.tile do nothing to pixels; give --autoencoder.path, or leave "
                "them as they are"
            )


@dataclass(frozen=True, kw_only=True)
class AutoencoderRun:
    """Training of a small diffusers AutoencoderKL: L1, a small KL term, and a perceptual term if one is given."""

    name: str = "autoencoder"
    """Name of the run: its folder is runs/NAME unless `folder` says otherwise."""
    folder: str = ""
    """The run's folder; empty: runs/NAME."""
    seed: int = 0
    """Seed of the weights, the order of pictures and the samples of the posterior."""
    data: DataConfig = field(default_factory=lambda: ScenesData(size=128))
    """Where pictures come from: every image of every document."""
    widths: tuple[int, ...] = (32, 48, 64, 96)
    """Channels at each resolution, finest first; each one after the first halves the sides."""
    crop: int = 0
    """Side in pixels of the square cut at random out of each picture; 0: whole pictures. Four pieces of half the side
    cost as much as a whole picture, and teach more."""
    channels: int = 4
    """Channels of the latent."""
    groups: int = 8
    """Groups of the group norms; divides every width."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence from a standard normal, beside the summed error (arXiv 2112.10752)."""
    perceptual: str = ""
    """MODULE:FUNCTION of Python code at hand; FUNCTION() returns a module that maps pictures (N, 3, H, W) in [-1, 1] to
    a feature map (N, C, h, w) or a list of them. Empty: no perceptual term."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual term beside the mean absolute error; without `perceptual` it must stay as it is."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=6000, rows=8, optimizer=AdamWConfig(rate=1e-3, betas=(0.9, 0.99)), warmup=200, schedule="cosine",
            precision="fp32",
        )
    )  # fmt: skip
    """The training loop; `rows` counts the pictures of a step."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1 or self.groups < 1 or any(w % self.groups for w in self.widths):
            raise ValueError(f"groups must divide every width, but {self.groups} does not divide all of {self.widths}")
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, but is {self.channels}")
        for name in ("kl_weight", "perceptual_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, but is {getattr(self, name)}")
        if not self.perceptual and self.perceptual_weight != 1.0:
            raise ValueError("perceptual_weight does nothing without perceptual; name a module, or leave it as it is")
        if self.crop < 0 or self.crop % self.down:
            raise ValueError(f"crop must be 0 or a multiple of the {self.down} pixels of a cell, but is {self.crop}")
        if caches(self.data):
            raise ValueError("an autoencoder is trained on pictures, but a cache holds latents alone; name its source")
        unused = TrainConfig()
        weighed = ("text_weight", "image_weight", "freeze", "lora", "starting_values")
        for name in ("pass_rows", "parallel", *weighed, "evaluate_every", "evaluate_count"):
            if getattr(self.train, name) != getattr(unused, name):
                raise ValueError(f"train.{name} does nothing when an autoencoder is trained; leave it as it is")

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.folder) if self.folder else Path("runs") / self.name

    @property
    def model_path(self) -> Path:
        """Where the run leaves its finished autoencoder."""
        return self.path / "model"

    @property
    def down(self) -> int:
        """Pixels along the side of one latent cell."""
        return 1 << (len(self.widths) - 1)
