"""Our Muon is torch's: bit for bit in bf16, close in fp32, and its updates are nearly orthogonal."""

import pytest
import torch

from monoformer.randomness import generator
from monoformer.train.muon import Muon, orthogonalize

SHAPES = ((16, 16), (16, 16), (48, 16), (16, 40))


def parameters() -> list[torch.nn.Parameter]:
    random = generator(0, "muon")
    return [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.0), (torch.float32, 1e-2)])
def test_muon_equals_torch(dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = parameters(), parameters()
    one = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1, dtype=dtype)
    two = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1)
    random = generator(1, "muon")
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=random)
            q.grad = p.grad.clone()
        one.step()
        two.step()
    for p, q in zip(ours, theirs, strict=True):
        assert (p - q).abs().max() <= tolerance


def test_updates_are_nearly_orthogonal() -> None:
    for rows, columns in ((24, 24), (48, 24), (24, 48)):
        made = orthogonalize(torch.randn((2, rows, columns), generator=generator(2, "muon")), torch.float32)
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.3
        assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(24, 4, 3, 3), (48, 4, 1, 1)])
def test_a_kernel_is_a_matrix_of_its_outputs(shape: tuple[int, ...]) -> None:
    random = generator(3, "muon")
    values = torch.randn(shape, generator=random)
    kernel, matrix = torch.nn.Parameter(values.clone()), torch.nn.Parameter(values.flatten(1).clone())
    one, two = (Muon([p], lr=0.02, dtype=torch.float32) for p in (kernel, matrix))
    for _ in range(3):
        kernel.grad = torch.randn(shape, generator=random)
        matrix.grad = kernel.grad.flatten(1)
        one.step()
        two.step()
    assert torch.equal(kernel.flatten(1), matrix)
    assert not torch.equal(kernel, values)
