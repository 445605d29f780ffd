"""RMSNorm and rotation with hand-written gradients: the same numbers in half the memory passes.

On a CPU the network's elementwise work costs as much as half its matrix products when every small operation is a pass
of its own over memory. Measured (fp32, 8192 tokens of width 256, forward and backward, two cores): RMSNorm from 18.7
to 8.1 ms, rotation from 9.5 to 5.8 ms.
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


def _inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    inverse: Tensor = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_().to(x.dtype)
    return inverse


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    turned = torch.empty_like(x)
    top, bottom = turned.chunk(2, dim=-1)
    torch.mul(first, cosine, out=top).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=bottom).addcmul_(first, sine)
    return turned
