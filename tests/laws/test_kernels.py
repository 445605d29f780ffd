"""The hand-written gradients are the true ones."""

import torch
import torch.nn.functional as F

from monoformer.config.model import NoScaling
from monoformer.model.attention import attend
from monoformer.model.kernels import AttendFunction, NormFunction, RotateFunction
from monoformer.model.rotary import rotary, rotate
from monoformer.randomness import generator


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, "kernels"), dtype=torch.float64)


def test_rms_norm_and_its_gradient() -> None:
    x, weight = numbers(3, 2, 8).requires_grad_(), numbers(8, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: NormFunction.apply(a, b, 1e-5), (x, weight))
    torch.testing.assert_close(NormFunction.apply(x, weight, 1e-5), F.rms_norm(x, (8,), weight, 1e-5))


def test_rotation_and_its_gradient() -> None:
    x, angles = numbers(2, 5, 3, 8).requires_grad_(), numbers(2, 5, 1, 4, seed=1)
    assert torch.autograd.gradcheck(lambda a: RotateFunction.apply(a, angles.cos(), angles.sin()), (x,))


def test_rotation_is_that_of_hugging_face_llama() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    x, positions = numbers(2, 7, 3, 8).float(), torch.arange(7).repeat(2, 1)
    cosine, sine = rotary(positions, 8, 10_000.0, NoScaling())
    whole_cosine, whole_sine = (torch.cat([table, table], dim=-1)[:, :, 0] for table in (cosine, sine))
    theirs, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), whole_cosine, whole_sine)
    torch.testing.assert_close(rotate(x, cosine, sine).transpose(1, 2), theirs)


def test_attention_and_its_gradient() -> None:
    q, k, v = (numbers(2, heads, 5, 4, seed=seed).requires_grad_() for seed, heads in enumerate((4, 2, 2)))
    mask = torch.eye(5, dtype=torch.bool) | (numbers(2, 1, 5, 5, seed=3) > 0)
    assert torch.autograd.gradcheck(lambda *qkv: AttendFunction.apply(*qkv, mask), (q, k, v))
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(AttendFunction.apply(q, k, v, mask), theirs)


def test_attention_in_bf16_is_nearly_as_near_to_the_truth_as_sdpa() -> None:
    q, k, v = (numbers(2, heads, 40, 16, seed=seed).bfloat16() for seed, heads in enumerate((4, 2, 2)))
    mask = torch.ones(40, 40, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    true = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask, enable_gqa=True)
    q.requires_grad_()
    ours, theirs = attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    assert type(ours.grad_fn).__name__ == "AttendFunctionBackward"
    assert (ours - true).abs().mean() < 2 * (theirs - true).abs().mean()
