"""Images in and out of the transformer: patches (linear or by a U-Net), two-dimensional positions, the image head.

Knows nothing of noise schedules or tokens. Invariant: `unpatchify(patchify(x)) == x`.
"""

from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from monoformer.config.model import ModelConfig
from monoformer.model.timestep import Modulation
from monoformer.model.unet import Skips, UNetDecoder, UNetEncoder, unet_widths


def patchify(x: Tensor, patch: int) -> Tensor:
    """Latents (N, C, h, w) -> patches (N, P, p p C), row by row; channels last within a patch."""
    return rearrange(x, "N C (h p) (w q) -> N (h w) (p q C)", p=patch, q=patch)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Patches (N, P, p p C) -> latents (N, C, h, w)."""
    return rearrange(patches, "N (h w) (p q C) -> N C (h p) (w q)", h=grid[0], w=grid[1], p=patch, q=patch)


@cache
def positions_2d(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Fixed sine-cosine positions (P, D): the first half of D tells x, the second y, as in the official code.

    Remembered, so not to be written to.
    """
    quarter = width // 4
    rates = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)  # mps has no float64
    y, x = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64, device="cpu"),
        torch.arange(grid[1], dtype=torch.float64, device="cpu"),
        indexing="ij",
    )
    halves = [
        torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (x.reshape(-1, 1) * rates, y.reshape(-1, 1) * rates)
    ]
    return torch.cat(halves, dim=1).float().to(device)


def features(config: ModelConfig, *, predicted: bool = False) -> int:
    """Numbers that stand for one patch outside the transformer: its latent (or prediction), or the U-Net's."""
    if config.image_patches == "unet":
        return unet_widths(config)[-1]
    return config.patch**2 * (config.predicted_channels if predicted else config.channels)


class PatchEmbedding(nn.Module):
    """Patches plus 2-D positions, plus the time where the model adds it (Transfusion, section 3.1) or modulates them.

    Transfusion adds an embedding e(t) to the patch before the linear layer: W (x + e(t)) = W x + W e(t). Ours is added
    after it, so it can be any vector of width D, not only one of the p p C dimensions that W reaches.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch, self.adds_time = config.patch, config.time == "add"
        self.has_positions = config.image_positions != "none"
        self.modulation = Modulation(config.width, 2) if config.time == "adaln_input" else None
        self.encoder = UNetEncoder(config) if config.image_patches == "unet" else None
        self.linear = nn.Linear(features(config), config.width)

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Skips]:
        """Latents (N, C, h, w), time embeddings (N, D) -> tokens (N, P, D), and what the image head needs of them."""
        grid = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        skips: Skips = ()
        if self.encoder is None:
            patches = patchify(x, self.patch)
        else:
            seen, skips = self.encoder(x, time)
            patches = patchify(seen, 1)
        tokens: Tensor = self.linear(patches.to(self.linear.weight.dtype))
        if self.has_positions:
            tokens = tokens + positions_2d(grid, tokens.shape[-1], x.device).to(tokens.dtype)
        if self.modulation is not None:
            shift, scale = self.modulation(time)[:, None].to(tokens.dtype).chunk(2, dim=-1)
            tokens = torch.addcmul(shift, tokens, 1 + scale)
        return (tokens + time[:, None].to(tokens.dtype) if self.adds_time else tokens), skips


class VisionEmbedding(nn.Module):
    """A vision encoder's features as tokens: linear, GELU, linear (MonoFormer's released code).

    No 2-D positions: the encoder has put its own into the features. No time: what it reads is never noised.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.vision_width, config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, P, E) -> tokens (N, P, D)."""
        tokens: Tensor = self.output(F.gelu(self.input(features.to(self.input.weight.dtype))))
        return tokens


class ImageHead(nn.Module):
    """Hidden states of an image's tokens -> its prediction; what the time does is `ModelConfig.image_head`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch, self.kind = config.patch, config.image_head
        norm = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=self.kind == "linear", bias=False)
        self.norm = nn.Identity() if self.kind == "shift" else norm
        self.modulation = None if self.kind == "linear" else Modulation(config.width, 2 if self.kind == "dit" else 1)
        self.linear = nn.Linear(config.width, features(config, predicted=True))
        self.decoder = UNetDecoder(config) if config.image_patches == "unet" else None

    def forward(self, hidden: Tensor, time: Tensor, grid: tuple[int, int], skips: Skips) -> Tensor:
        """Hidden states (N, P, D), time embeddings (N, D), the encoder's skips -> predictions (N, C, h, w).

        With learned variance (N, 2 C, h, w).
        """
        y = self.norm(hidden)
        if self.modulation is not None:
            shift, *scale = self.modulation(time)[:, None].to(y.dtype).split(y.shape[-1], dim=-1)
            y = torch.addcmul(shift, y, 1 + scale[0]) if scale else y + shift
        if self.decoder is None:
            return unpatchify(self.linear(y), grid, self.patch)
        prediction: Tensor = self.decoder(unpatchify(self.linear(y), grid, 1), time, skips)
        return prediction
