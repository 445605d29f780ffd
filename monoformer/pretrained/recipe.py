"""A network that has no weights yet, and where each of them comes from.

Weights are read and drawn one at a time, whole, into whatever holds them: a network on one device, or the part of it
that a process has. Knows nothing of processes. Invariant: beside what the network holds, one tensor is in memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from monoformer.config.model import ModelConfig
from monoformer.model.experts import text_name, with_experts
from monoformer.model.monoformer import MonoFormer
from monoformer.randomness import generator


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network gets its weights."""

    model: MonoFormer
    """On the meta device."""
    read: Mapping[str, Callable[[], Tensor]]
    """By parameter: reads the whole tensor from its file, fp32, into memory of its own."""
    new: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameters that are drawn, by the purpose that keys their generator."""
    seed: int = 0
    """Seed of what is drawn."""
    official: bool = False
    """Whether new image parts start as in MonoFormer's released code."""

    def with_experts(self) -> "Recipe":
        """Image experts that are copies of the text weights."""
        model = with_experts(self.model)
        names = [name for name, _ in model.named_parameters()]
        source = {name: name if name in self.read else text_name(name) for name in names}
        read = {name: self.read[own] for name, own in source.items() if own in self.read}
        new = {
            purpose: tuple(name for name, own in source.items() if own in drawn) for purpose, drawn in self.new.items()
        }
        return replace(self, model=model, read=read, new=new)

    def with_vision(self, config: ModelConfig) -> "Recipe":
        """A new projection of a vision encoder's features, whose width and grid `config` tells."""
        self.model.give_vision(config)
        own = tuple(name for name, _ in self.model.named_parameters() if name.startswith("vision."))
        return replace(self, new={**self.new, "vision": own})

    @torch.no_grad()
    def fill(
        self,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        part: Callable[[Tensor, Tensor], Tensor] = lambda whole, parameter: whole,
    ) -> MonoFormer:
        """Give the network its weights, on `device` in `dtype` where it has no room for them yet.

        `part(whole, parameter)` is what of a tensor a parameter holds that does not hold all.
        """
        for name, read in self.read.items():
            parameter = self.model.get_parameter(name)
            if parameter.is_meta:
                _assign(self.model, name, read().to(device=device, dtype=dtype))
            else:
                parameter.copy_(part(read(), parameter))
        for purpose, names in self.new.items():
            for name in names:
                parameter = self.model.get_parameter(name)
                if parameter.is_meta:
                    _assign(self.model, name, torch.empty_like(parameter, device=device, dtype=dtype))
            self.model.tie()
            self.model.initialize(generator(self.seed, purpose), only=names, part=part, official=self.official)
        self.model.tie()
        return self.model


def _assign(model: MonoFormer, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter, without a copy."""
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, nn.Parameter(tensor))
