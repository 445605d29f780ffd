"""How the processes of a run share its work and its memory."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Checkpointing: TypeAlias = Literal["none", "selective", "full"]
"""What blocks compute again in the backward pass: nothing; all but matrix products and attention; everything."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """What each process holds, what a block keeps for its backward pass, and whether blocks are compiled."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What a process of `torchrun` holds. ddp: the whole model, and only gradients are summed. fsdp: its part of the
    weights, gradients, averages and optimiser state (FSDP2), and one whole block at a time while that block computes;
    in bf16, blocks are then gathered in bf16 and their gradients summed in fp32. One process holds all in any case."""
    replicas: int = 1
    """With fsdp: how many copies of the model the processes hold together (HSDP); it divides their number. Parts are
    then gathered among the processes of one copy alone, which should be one machine's. 1: one copy over all."""
    checkpointing: Checkpointing = "none"
    """What a block computes again in its backward pass instead of keeping it. selective: all but matrix products and
    attention; full: everything but its input."""
    compile: bool = False
    """Compile every block by `torch.compile`."""

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"train.parallel.replicas must be at least 1, but is {self.replicas}")
        if self.replicas > 1 and self.strategy != "fsdp":
            raise ValueError(
                f"train.parallel.replicas = {self.replicas} divides the processes of fsdp, but the strategy is "
                f"{self.strategy!r}, in which each process is a copy; add --train.parallel.strategy fsdp"
            )
