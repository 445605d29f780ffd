"""The LLaMA transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Knows nothing of tokens, images or time: it maps (B, T, D) to (B, T, D) under a mask. Image tokens may be modulated a
layer (DiT's adaLN): `modulated` tells each token which condition it takes, row 0 being "none".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from monoformer.config.model import ModelConfig
from monoformer.model.attention import CacheView, Mask, attend
from monoformer.model.kernels import NormFunction
from monoformer.model.rotary import rotary, rotate
from monoformer.model.timestep import Modulation


@dataclass(frozen=True)
class Condition:
    """Which tokens are modulated by which time."""

    vectors: Tensor
    """(N, D) time embeddings."""
    index: Tensor
    """int64 (B, T): 0 for a token without time, else 1 + row of `vectors`."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight; statistics in fp32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width), same dtype."""
        normed: Tensor = NormFunction.apply(x, self.weight.to(x.dtype), self.epsilon)  # type: ignore[no-untyped-call]
        return normed


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and optional QK-norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        biased, all_biased = config.attention_bias != "none", config.attention_bias == "all"
        self.q = nn.Linear(config.width, config.heads * config.head_width, bias=biased)
        self.k = nn.Linear(config.width, config.kv_heads * config.head_width, bias=biased)
        self.v = nn.Linear(config.width, config.kv_heads * config.head_width, bias=biased)
        self.output = nn.Linear(config.heads * config.head_width, config.width, bias=all_biased)
        norm = config.norm_epsilon
        self.q_norm = RMSNorm(config.head_width, norm) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_width, norm) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Mask | None, view: CacheView | None, layer: int
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q = rearrange(self.q(x), "B T (H K) -> B T H K", H=self.heads)
        k = rearrange(self.k(x), "B T (G K) -> B T G K", G=self.kv_heads)
        v = rearrange(self.v(x), "B T (G K) -> B G T K", G=self.kv_heads)
        q, k = rotate(self.q_norm(q), *rope).transpose(1, 2), rotate(self.k_norm(k), *rope).transpose(1, 2)
        if view is not None:
            k, v = view.extend(layer, k, v)
        y = attend(q.to(v.dtype), k.to(v.dtype), v, mask)
        result: Tensor = self.output(rearrange(y, "B H T K -> B T (H K)"))
        return result


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        result: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return result


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual; image tokens modulated when the model uses adaLN."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = MLP(config)
        self.modulation = Modulation(config.width, 6) if config.time == "adaln" else None

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Mask | None,
        condition: Condition | None,
        view: CacheView | None,
        layer: int,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.modulation is None or condition is None:
            x = x + self.attention(self.attention_norm(x), rope, mask, view, layer)
            result: Tensor = x + self.mlp(self.mlp_norm(x))
            return result
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self._modulate(condition, x)
        y = torch.addcmul(shift_a, self.attention_norm(x), scale_a)
        x = torch.addcmul(x, gate_a, self.attention(y, rope, mask, view, layer).to(x.dtype))
        y = torch.addcmul(shift_m, self.mlp_norm(x), scale_m)
        return torch.addcmul(x, gate_m, self.mlp(y).to(x.dtype))

    def _modulate(self, condition: Condition, x: Tensor) -> tuple[Tensor, ...]:
        """Shifts, scales and gates of every token, six times (B, T, D): 0 and 1 where a token has no time."""
        assert self.modulation is not None
        table = F.pad(self.modulation(condition.vectors), (0, 0, 1, 0)).unflatten(1, (6, -1))  # (1 + N, 6, D)
        neutral = table.new_tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])[:, None]
        return F.embedding(condition.index, (table + neutral).flatten(1).to(x.dtype)).chunk(6, dim=-1)


class Transformer(nn.Module):
    """The stack of blocks and the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Mask | None,
        *,
        condition: Condition | None = None,
        view: CacheView | None = None,
    ) -> Tensor:
        """Embedded tokens (B, T, D), positions (B, T) -> normed hidden states (B, T, D)."""
        rope = rotary(positions, self.config.head_width, self.config.rope_theta, self.config.rope_scaling)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, mask, condition, view, layer)
        hidden: Tensor = self.norm(x)
        return hidden
