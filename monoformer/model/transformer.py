"""The LLaMA transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Knows nothing of tokens, images or time: it maps (B, T, D) to (B, T, D) under a mask. Image tokens may be modulated in
every layer (DiT's adaLN): `Condition.index` tells each token which time it takes, 0 being none. They may also have
experts, weights of their own for all that a token does alone (LMFusion, arXiv 2412.15188); attention is always joint.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from monoformer.config.model import ModelConfig
from monoformer.model.attention import Mask, View, attend
from monoformer.model.kernels import norm
from monoformer.model.packed import together
from monoformer.model.rotary import rotary, rotate
from monoformer.model.timestep import Modulation

_NEUTRAL = (0.0, 1.0, 1.0, 0.0, 1.0, 1.0)
"""What shifts, scales and gates start from: attention's three, then the MLP's."""


@dataclass(frozen=True)
class Condition:
    """Which tokens are modulated by which time."""

    vectors: Tensor
    """(N, D) time embeddings."""
    index: Tensor
    """int64 (B, T): 0 for a token without time, else 1 + row of `vectors`."""


@dataclass(frozen=True)
class Route:
    """Which tokens go through the text weights and which through the image experts: together, each token once."""

    text: Tensor
    """int64 (M,) index in B * T."""
    image: Tensor
    """int64 (J,) index in B * T."""

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, ...) -> (M, ...) and (J, ...)."""
        flat = x.flatten(0, 1)
        return flat.index_select(0, self.text), flat.index_select(0, self.image)

    def join(self, text: Tensor, image: Tensor, like: Tensor) -> Tensor:
        """(M, ...) and (J, ...) -> (B, T, ...) with the B and T of `like`."""
        flat = text.new_empty((like.shape[0] * like.shape[1], *text.shape[1:]))
        flat.index_copy_(0, self.text, text).index_copy_(0, self.image, image.to(text.dtype))
        return flat.view(*like.shape[:2], *text.shape[1:])


class RMSNorm(nn.Module):
    """x / rms(x) * weight; statistics in fp32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width), same dtype."""
        return norm(x, self.weight.to(x.dtype), self.epsilon)


def touch(x: Tensor, idle: Sequence[Tensor]) -> Tensor:
    """The same x, with a gradient of 0 for parameters that a pass leaves alone.

    Every parameter gets a gradient in every pass on every process, or sharded training would hang (DESIGN 4).
    """
    return x + 0.0 * torch.stack([p.sum() for p in idle]).sum() if idle else x


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and optional QK-norm: its projections, and what joins tokens."""

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

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (..., D) -> queries (..., H, K), keys and values (..., G, K), not yet rotated."""
        q, k, v = together(x, self.q, self.k, self.v)
        q = self.q_norm(q.unflatten(-1, (self.heads, -1)))
        k = self.k_norm(k.unflatten(-1, (self.kv_heads, -1)))
        return q, k, v.unflatten(-1, (self.kv_heads, -1))

    def forward(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        rope: tuple[Tensor, Tensor],
        mask: Mask | None,
        view: View | None,
        layer: int,
    ) -> Tensor:
        """What `project` made of (B, T, D) -> (B, T, H K), ready for `output`."""
        q, k = rotate(qkv[0], *rope).transpose(1, 2), rotate(qkv[1], *rope).transpose(1, 2)
        v = qkv[2].transpose(1, 2)
        if view is None:
            y = attend(q.to(v.dtype), k.to(v.dtype), v, mask)
        else:
            assert not isinstance(mask, BlockMask), "FlexAttention is for training"
            y = view.attend(layer, q, k, v, mask)
        return y.transpose(1, 2).flatten(2)  # (B, T, H K)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        gate, up = together(x, self.gate, self.up)
        gate = F.silu(gate)
        result: Tensor = self.down(gate * up if torch.is_grad_enabled() else gate.mul_(up))
        return result


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual; image tokens modulated when the model uses adaLN.

    With modality experts, `image` holds a second block's weights, through which image tokens go instead.
    """

    def __init__(self, config: ModelConfig, *, is_expert: bool = False) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = MLP(config)
        has_expert = config.experts == "modality" and not is_expert
        self.modulation = Modulation(config.width, 6) if config.time == "adaln" and not has_expert else None
        self.image = Block(config, is_expert=True) if has_expert else None

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Mask | None,
        condition: Condition | None,
        view: View | None,
        layer: int,
        route: Route | None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if torch.is_grad_enabled():
            x = touch(x, self._idle(condition, route))
        if self.image is None or route is None:
            parts = None if self.modulation is None or condition is None else self._modulate(condition, x)
            return self._after(x, self.attention(self._before(x, parts), rope, mask, view, layer), parts)
        (text, image), parts = route.split(x), None
        if condition is not None:
            own = Condition(condition.vectors, condition.index.flatten()[route.image])
            parts = self.image._modulate(own, image)
        pairs = zip(self._before(text, None), self.image._before(image, parts), strict=True)
        q, k, v = (route.join(*pair, x) for pair in pairs)
        y = route.split(self.attention((q, k, v), rope, mask, view, layer))
        return route.join(self._after(text, y[0], None), self.image._after(image, y[1], parts), x)

    def _idle(self, condition: Condition | None, route: Route | None) -> list[nn.Parameter]:
        """What a pass without times, or without images, leaves alone."""
        if self.image is not None and route is None:
            return list(self.image.parameters())
        modulation = self.modulation if self.image is None else self.image.modulation
        return [] if modulation is None or condition is not None else list(modulation.parameters())

    def _before(self, x: Tensor, parts: Sequence[Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """What each token (..., D) does alone before attention."""
        y = self.attention_norm(x)
        return self.attention.project(y if parts is None else torch.addcmul(parts[0], y, parts[1]))

    def _after(self, x: Tensor, y: Tensor, parts: Sequence[Tensor] | None) -> Tensor:
        """What each token (..., D) does alone with what attention (..., H K) brought it."""
        if parts is None:
            x = x + self.attention.output(y)
            result: Tensor = x + self.mlp(self.mlp_norm(x))
            return result
        _, _, gate_a, shift_m, scale_m, gate_m = parts
        x = torch.addcmul(x, gate_a, self.attention.output(y).to(x.dtype))
        y = torch.addcmul(shift_m, self.mlp_norm(x), scale_m)
        return torch.addcmul(x, gate_m, self.mlp(y).to(x.dtype))

    def _modulate(self, condition: Condition, x: Tensor) -> tuple[Tensor, ...]:
        """Shifts, scales and gates of every token, six times (..., D): 0 and 1 where a token has no time."""
        assert self.modulation is not None
        tables = F.pad(self.modulation(condition.vectors), (0, 0, 1, 0)).chunk(6, dim=1)  # (1 + N, D) each
        # looked up one by one: gradients of parts of one wide lookup would be copied together first
        return tuple(
            F.embedding(condition.index, (table + kept).to(x.dtype))
            for table, kept in zip(tables, _NEUTRAL, strict=True)
        )


class Transformer(nn.Module):
    """The stack of blocks and the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon)
        self.image_norm = RMSNorm(config.width, config.norm_epsilon) if config.experts == "modality" else None

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Mask | None,
        *,
        condition: Condition | None = None,
        view: View | None = None,
        route: Route | None = None,
        again: Tensor | None = None,
    ) -> Tensor:
        """Embedded tokens (B, T, D), positions (B, T) -> normed hidden states (B, T, D).

        `again` (B, T, D) is added before every layer but the first.
        """
        tables = rotary(positions, self.config.head_width, self.config.rope_theta, self.config.rope_scaling)
        rope = tables[0].to(x.dtype), tables[1].to(x.dtype)
        for layer, block in enumerate(self.blocks):
            x = x if again is None or not layer else x + again
            x = block(x, rope, mask, condition, view, layer, route)
        if self.image_norm is None or route is None:
            hidden: Tensor = self.norm(x)
            return hidden
        text, image = route.split(x)
        return route.join(self.norm(text), self.image_norm(image), x)
