"""Weights a second time, in the order in which a CPU's products read them: passes of few rows take half as long.

Knows linear layers, nothing of models. Invariant: a packed layer is the layer that it was made from (same parameters,
same names), up to the last bits of its products, also when other weights are loaded. Measured on one core with AVX-512
(768 to 2048 numbers, microseconds, plain and packed), fp32: 1 row 438 and 480, 4 rows 1409 and 552, 8 rows 1110 and
627, 64 rows 1831 and 1746; bf16: 1 row 412 and 300, 4 rows 876 and 360, 8 rows 693 and 524. Of more rows there both are
alike; on two cores with AVX512-BF16 (all matrices of a block of width 512, milliseconds), bf16: 514 rows 7.8 and 7.2,
2056 rows 30.1 and 28.3; fp32, five of them: 128 rows 4.3 and 2.6, 1028 rows 23.2 and 20.3.
"""

from collections.abc import Sequence
from functools import cache
from itertools import count
from typing import cast
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HINT = 64
"""Rows of a product that fp32 weights are put in order for."""
BESIDE = (("q", "k", "v"), ("gate", "up"))
"""Layers of a module that read the same input: packed, they are one product."""


class Packed:
    """A weight (outputs, inputs) in the order of a product's reading, and a bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.load(weight, bias)
        self.number = next(_numbers)
        """What compiled graphs call it by: the compiler takes no tensor in oneDNN's order."""
        _numbered[self.number] = self

    def load(self, weight: Tensor, bias: Tensor | None) -> None:
        """Hold other numbers."""
        self.matrix, self.bias, self.outputs = reorder(weight), bias, len(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        if torch.compiler.is_compiling():
            return cast(Tensor, torch.ops.monoformer.product(x, self.number, self.outputs))
        return multiply(x, self.matrix, self.bias)


class PackedLinear(nn.Module):
    """A linear layer that holds its weight twice; the second time perhaps as a part of `joint`, beside others'."""

    def __init__(self, linear: nn.Linear, joint: "Joint | None" = None) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.joint = joint
        self.packed = None if joint else Packed(*_numbers_of([linear]))
        if joint:
            joint.layers[joint.layers.index(linear)] = self
        self.register_load_state_dict_post_hook(lambda module, keys: module.refresh())  # type: ignore[no-untyped-call]

    def refresh(self) -> None:
        """Put the weights in order again: others were loaded."""
        if self.joint is not None:
            self.joint.packed.load(*_numbers_of(self.joint.layers))
        elif self.packed is not None:
            self.packed.load(*_numbers_of([self]))

    def takes(self, x: Tensor) -> bool:
        """Whether the packed weights are the faster ones for this input."""
        rows = x.numel() // x.shape[-1]
        plain = not rows or (rows == 1 and x.dtype == torch.float32) or x.dtype != self.weight.dtype
        return not plain and not torch.is_grad_enabled()

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        if self.packed is None or not self.takes(x):
            return F.linear(x, self.weight, self.bias)
        return self.packed(x)


class Joint:
    """Several linear layers of one input as one packed matrix."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        self.layers: list[nn.Linear | PackedLinear] = [*layers]
        """Those whose weights these are, packed themselves as soon as they are."""
        self.packed = Packed(*_numbers_of(layers))

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """(..., inputs) -> (..., outputs) of each layer."""
        return torch.split(self.packed(x), self.sizes, dim=-1)


def _numbers_of(layers: "Sequence[nn.Linear | PackedLinear]") -> tuple[Tensor, Tensor | None]:
    """Weights and biases of layers one below the other."""
    weights = [layer.weight.detach() for layer in layers]
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return torch.cat(weights), torch.cat(biases) if biases else None


def together(x: Tensor, *layers: nn.Module) -> Sequence[Tensor]:
    """What each layer makes of the same x."""
    first = layers[0]
    if isinstance(first, PackedLinear) and first.joint is not None and first.takes(x):
        return first.joint(x)
    return [layer(x) for layer in layers]


def reorder(weight: Tensor) -> Tensor:
    """A weight in the order of a product's reading."""
    hint = 1 if weight.dtype == torch.bfloat16 else HINT
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), hint))


def multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of reordered weights."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""))


_numbers = count()
_numbered: WeakValueDictionary[int, Packed] = WeakValueDictionary()
_library = torch.library.Library("monoformer", "DEF")
_library.define("product(Tensor x, int number, int outputs) -> Tensor")


def _product(x: Tensor, number: int, outputs: int) -> Tensor:
    packed = _numbered[number]
    return multiply(x, packed.matrix, packed.bias)


_library.impl("product", _product, "CPU")
_library.impl("product", lambda x, number, outputs: x.new_empty((*x.shape[:-1], outputs)), "Meta")


def pack(module: nn.Module) -> None:
    """Pack all linear layers in a module whose weights are on a CPU and will not change."""
    children = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    joints: dict[str, Joint] = {}
    for names in BESIDE:
        layers = [children[name] for name in names if name in children]
        if len(layers) == len(names) and len({layer.bias is None for layer in layers}) == 1:
            joints |= dict.fromkeys(names, Joint(layers))
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, joints.get(name)))
        else:
            pack(child)


@cache
def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of PyTorch has oneDNN's products, and this CPU those of `dtype` (bf16 needs AVX-512)."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        reorder(torch.zeros(16, 16, dtype=dtype))
    except RuntimeError:
        return False
    return True
