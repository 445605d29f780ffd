"""The autoencoder of a model in use, which is not built before a picture goes through it.

Knows nothing of sessions. Invariant: text alone never asks for it, so a model whose autoencoder is elsewhere writes.
"""

import torch
from torch import Tensor

from monoformer.autoencoder import Autoencoder, Moments, build_autoencoder, check_fits
from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.model import ModelConfig

REMEDY = (
    "text needs none; for pictures name its folder as autoencoder.path in the model's config.json (an official "
    "checkpoint: monoformer convert CHECKPOINT OUT --autoencoder FOLDER)"
)


class Deferred:
    """The autoencoder that a model folder names, shaped as the model says."""

    def __init__(
        self, config: AutoencoderConfig, model: ModelConfig, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.channels, self.down, self.samples = model.channels, model.down, config.posterior == "sample"
        self._config, self._model, self._device, self._dtype = config, model, device, dtype
        self._built: Autoencoder | None = None

    def build(self) -> Autoencoder:
        """The autoencoder itself. Raises ValueError where there is none, it cannot be had, or it does not fit."""
        if self._built is not None:
            return self._built
        if not self._config.path and (self.channels, self.down) != (3, 1):
            raise ValueError(
                f"the model draws latents of {self.channels} channels, but names no autoencoder to make pictures of "
                f"them; {REMEDY}"
            )
        try:
            found = build_autoencoder(self._config, device=self._device, dtype=self._dtype)
        except ValueError as error:
            raise ValueError(f"{error}; {REMEDY}") from None
        check_fits(found, self._model)
        self._built = found
        return found

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> latents (N, channels, H / down, W / down), fp32."""
        return self.build().encode(pixels)

    def moments(self, pixels: Tensor) -> Moments:
        """Mean and deviation of the latents."""
        return self.build().moments(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, channels, h, w) -> uint8 (N, 3, h * down, w * down)."""
        return self.build().decode(latents)
