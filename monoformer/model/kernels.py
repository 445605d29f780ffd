"""RMSNorm, rotation and attention with hand-written gradients: the same numbers in half the time.

On a CPU the network's elementwise work costs as much as half its matrix products when every small operation is a pass
of its own over memory. Measured (fp32, 8192 tokens of width 256, forward and backward, two cores): RMSNorm from 18.7
to 8.1 ms, rotation from 9.5 to 5.8 ms. Attention under a mask (15 rows of 298 tokens, 4 heads of 64, a CPU with
AVX512-BF16) in bf16: SDPA 42.7 ms, this 21.3 ms; in fp32 SDPA is the faster one.
"""

from typing import Any

import torch
from torch import Tensor


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight over the last axis: (..., D), (D,) -> (..., D)."""
    if torch.is_grad_enabled():
        result: Tensor = NormFunction.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
        return result
    return (x * _inverse_rms(x, epsilon)).mul_(weight)  # calling autograd takes longer than one token's arithmetic


def turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions: (..., K), two tables (..., K / 2) that broadcast -> (..., K)."""
    if torch.is_grad_enabled():
        result: Tensor = RotateFunction.apply(x, cosine, sine)  # type: ignore[no-untyped-call]
        return result
    return _turn(x, cosine, sine)


class NormFunction(torch.autograd.Function):
    """x / rms(x) * weight over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """(..., D), (D,) -> (..., D); statistics in fp32."""
        inverse = _inverse_rms(x, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """d x = rms^-1 (g w - n mean(g w n)) with n = x / rms; d weight = sum(g n)."""
        (gradient,) = gradients
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse
        weight_gradient = (gradient * normed).flatten(0, -2).sum(0)
        scaled = gradient * weight
        mean = torch.linalg.vecdot(scaled, normed).div_(-x.shape[-1]).unsqueeze(-1)
        return scaled.addcmul_(normed, mean).mul_(inverse), weight_gradient, None


class RotateFunction(torch.autograd.Function):
    """Rotary positions; the gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """(..., K), two tables (..., K / 2) that broadcast -> (..., K)."""
        ctx.save_for_backward(cosine, sine)
        return _turn(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The rotation by the opposite angle."""
        cosine, sine = ctx.saved_tensors
        return _turn(gradients[0], cosine, -sine), None, None


class AttendFunction(torch.autograd.Function):
    """Scaled dot-product attention under a mask, as matrix products that keep the probabilities."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q (B, H, T, K), k and v (B, G, S, K), bool (B, 1, T, S) -> (B, H, T, K); softmax in fp32."""
        result, rows, probabilities = attend_by_products(q, k, v, mask)
        ctx.save_for_backward(rows, k, v, probabilities)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """d v = p' g; with s = softmax'(p, g v'): d q = s k / sqrt(K), d k = s' q / sqrt(K)."""
        rows, k, v, probabilities = ctx.saved_tensors
        gradient = gradients[0].reshape(rows.shape)
        scores = torch._softmax_backward_data(gradient @ v.mT, probabilities, -1, probabilities.dtype)
        q_gradient = (scores @ k).mul_(rows.shape[-1] ** -0.5).view(gradients[0].shape)
        return q_gradient, scores.mT @ rows, probabilities.mT @ gradient, None


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Attention (B, H, T, K), the scaled queries (B, G, H / G T, K) and the probabilities (B, G, H / G T, S).

    The H / G heads that share a key stand below each other as the rows of one matrix.
    """
    rows = (q * q.shape[-1] ** -0.5).reshape(*k.shape[:2], -1, q.shape[-1])
    scores = rows @ k.mT
    if mask is not None:
        scores.unflatten(2, (-1, q.shape[2])).masked_fill_(~mask[:, :, None], -torch.inf)
    probabilities = scores.softmax(-1)
    return (probabilities @ v).view(q.shape), rows, probabilities


def _inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    inverse: Tensor = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_().to(x.dtype)
    return inverse


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    if torch.compiler.is_compiling():  # it writes into no views, and makes one pass over memory of this by itself
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    turned = torch.empty_like(x)
    top, bottom = turned.chunk(2, dim=-1)
    torch.mul(first, cosine, out=top).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=bottom).addcmul_(first, sine)
    return turned
