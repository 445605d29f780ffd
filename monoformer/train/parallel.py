"""Many processes, one run: the only file that knows ranks.

The network is written for one device. Here its blocks are checkpointed, then compiled, then sharded (FSDP2), or the
whole is replicated (DDP); what else in `train/` differs between one process and many asks `Ranks`. Losses are divided
by global counts before the backward pass, so gradients are summed, never averaged. Invariant: documents, losses and
updates do not depend on the number of processes, but for the last bits of sums.
"""

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from monoformer.config.parallel import ParallelConfig
from monoformer.model.monoformer import MonoFormer

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: they do while the first one draws samples or is scored."""

KEPT = (
    *(torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default),
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
)
"""What selective checkpointing keeps: what is dear to compute again."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among all of a run's."""

    rank: int = 0
    world: int = 1
    local_world: int = 1
    """Processes of this machine."""
    numbers: dist.ProcessGroup | None = None
    """For numbers of the host; None where there is one process."""
    files: dist.ProcessGroup | None = None
    """For what a thread does that writes checkpoints."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and the console."""
        return self.rank == 0

    def gather(self, values: Sequence[float], *, group: dist.ProcessGroup | None = None) -> list[list[float]]:
        """Every process's numbers, by rank."""
        own = torch.tensor(values, dtype=torch.float64)
        if self.numbers is None:
            return [own.tolist()]
        found = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(found, own, group=group or self.numbers)
        return [numbers.tolist() for numbers in found]

    def gather_all(self, value: Any, *, group: dist.ProcessGroup | None = None) -> list[Any]:
        """Every process's value, whatever it is, by rank."""
        if self.numbers is None:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=group or self.numbers)
        return found

    def total(self, *values: float) -> list[float]:
        """The sums over all processes."""
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process goes first; the others follow when it is through, and find what it wrote."""
        if not self.first:
            self.gather([0.0])  # a number, since gloo does not wait for the others where there is none to send
        yield
        if self.first:
            self.gather([0.0])

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sharded tensors put together in the first process's host memory, one after the other; others get nothing.

        Tensors that are whole already are returned as they are.
        """
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if not isinstance(tensor, DTensor):
                found[name] = tensor
                continue
            together = tensor.full_tensor()
            if self.first:
                found[name] = together.cpu()
        return found


ALONE = Ranks()
"""One process."""


@contextmanager
def processes(device: torch.device) -> Iterator[Ranks]:
    """This process among those that `torchrun` started, by gloo on the CPU and nccl on CUDA; else alone."""
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"several processes train on cuda or cpu, not on {device.type}; add --train.device cpu")
    if device.type == "cuda":
        local = dist.get_node_local_rank(fallback_rank=0)
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this machine has no GPU, since there are {torch.cuda.device_count()}; start as "
                f"many with torchrun --nproc-per-node"
            )
        torch.cuda.set_device(local)
    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    # torchrun keeps its store when it starts processes again, with the addresses of those that are gone
    store = dist.PrefixStore(f"restart-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    yield joined()
    dist.destroy_process_group()  # not after an error: it would wait for the others


def joined() -> Ranks:
    """This process in the process group that was initialised; all of them call it together."""
    return Ranks(
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        local_world=int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())),
        numbers=dist.new_group(backend="gloo", timeout=PATIENCE),
        files=dist.new_group(backend="gloo", timeout=PATIENCE),
    )


def rows_of_pass(rows: int, pass_rows: int, world: int) -> int:
    """Rows that one process reads for one pass. Raises ValueError when the rows of a step cannot be dealt evenly."""
    own = pass_rows or rows // world
    if own < 1 or rows % (own * world):
        together = max(1, pass_rows) * world
        raise ValueError(
            f"{world} processes with passes of {own} rows cannot share train.rows = {rows} evenly; "
            f"choose rows that {together} divides: --train.rows {together * max(1, round(rows / together))}"
        )
    return own


def is_sharded(config: ParallelConfig, world: int) -> bool:
    """Whether so many processes hold parts of the network (FSDP2) instead of all of it."""
    return config.strategy == "fsdp" and world > 1


def parts_of(config: ParallelConfig, world: int) -> int:
    """Among how many of `world` processes one copy of the network is divided; 1: each holds all of it.

    Raises ValueError for copies that the processes cannot hold.
    """
    if not is_sharded(config, world):
        return 1
    if world % config.replicas:
        raise ValueError(f"train.parallel.replicas = {config.replicas} does not divide the {world} processes")
    return world // config.replicas


def spread(model: MonoFormer, config: ParallelConfig, ranks: Ranks, *, device: torch.device, bf16: bool) -> None:
    """Checkpoint, compile and shard the network's blocks, in this order; on the meta device before weights are there.

    Sharded, the blocks of a bf16 run are gathered in bf16; what is around them stays fp32, so that the residual stream
    begins and ends in fp32, as it does in one process. Raises ValueError for copies that the processes cannot hold.
    """
    for block in model.transformer.blocks:
        prepare_block(block, config)
    if not is_sharded(config, ranks.world):
        return
    copies, parts = config.replicas, parts_of(config, ranks.world)
    mesh = (
        init_device_mesh(device.type, (ranks.world,), mesh_dim_names=("parts",))
        if copies == 1
        else init_device_mesh(device.type, (copies, parts), mesh_dim_names=("copies", "parts"))
    )
    whole, half = (
        MixedPrecisionPolicy(),
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False),
    )
    # nothing works in place on the hidden states that leave a network with experts as a view
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for block in model.transformer.blocks:
        fully_shard(block, mesh=mesh, mp_policy=half if bf16 else whole)
    fully_shard(model, mesh=mesh, mp_policy=whole)  # the root stays gathered, since heads are called beside `forward`


def prepare_block(block: nn.Module, config: ParallelConfig) -> None:
    """Checkpoint and compile a block's forward pass, beneath the hooks of sharding."""
    forward: Callable[..., Any] = block.forward
    if config.checkpointing != "none":
        selective = functools.partial(create_selective_checkpoint_contexts, _keep_dear)
        chosen: dict[str, Any] = {"context_fn": selective} if config.checkpointing == "selective" else {}
        forward = functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False, **chosen)
    if config.compile:
        forward = torch.compile(forward)
    if forward != block.forward:
        block.forward = forward


def _keep_dear(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def replicated(network: nn.Module, config: ParallelConfig, ranks: Ranks) -> nn.Module:
    """The network behind DDP where that is how processes share a run; else itself.

    DDP usually packs its buckets anew after the first pass, and where a number lies in a bucket decides in which order
    three or more processes add it: a run and the same run resumed would differ in their last bits. With
    `find_unused_parameters` it keeps its buckets; one parameter that is never used spares the warning that all are.
    """
    if ranks.world == 1 or config.strategy != "ddp":
        return network
    network.register_parameter("unused", nn.Parameter(next(network.parameters()).new_zeros(1)))
    return DistributedDataParallel(network, find_unused_parameters=True, gradient_as_bucket_view=True)


@contextmanager
def accumulating(network: nn.Module, *, last: bool) -> Iterator[None]:
    """One pass of a step: replicas sum their gradients in the last pass only.

    Parts are summed in every pass, since to wait would need the gradients of the whole model in memory.
    """
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_all_reduce(last, recurse=False)
    if isinstance(network, DistributedDataParallel) and not last:
        with network.no_sync():
            yield
    else:
        yield


def clip(model: nn.Module, limit: float) -> float:
    """Scale the gradients down to the norm `limit`; their norm before, over all parts."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def part(whole: Tensor, parameter: Tensor) -> Tensor:
    """What of a tensor lies where this process has its part of `parameter`."""
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def by_matrix(function: Callable[[Tensor], Tensor], matrices: list[Tensor]) -> list[Tensor]:
    """`function` (N, rows, columns) -> same, of whole matrices of one shape; it treats each one alone.

    Where rows are sharded, every process gets its share of the N matrices whole, and their rows go back afterwards.
    """
    stacked = torch.stack(matrices)
    if not isinstance(stacked, DTensor):
        return list(function(stacked).unbind())
    each = [Shard(0) if isinstance(place, Shard) else place for place in stacked.placements]
    own = function(stacked.redistribute(placements=each).to_local()).contiguous()
    shape, stride = stacked.shape, stacked.stride()
    done = DTensor.from_local(own, stacked.device_mesh, each, run_check=False, shape=shape, stride=stride)
    return list(done.redistribute(placements=stacked.placements).unbind())
