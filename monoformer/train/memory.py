"""What a training step holds in memory, by kind.

What the backward pass needs is found by running the network on tensors without data, so it follows the code by itself:
every mode of the network, autocast, checkpointing as training does it. Two shallow networks are run, and depth is a
straight line between them. Knows nothing of speeds. Invariant: no storage is ever allocated.
"""

import functools
import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monoformer.config.model import ModelConfig
from monoformer.config.parallel import Checkpointing, ParallelConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import MuonConfig, TrainConfig, shown_slots
from monoformer.model.monoformer import MonoFormer, Place
from monoformer.model.patches import positions_2d
from monoformer.train.optim import is_hidden_matrix
from monoformer.train.parallel import is_sharded, parts_of, prepare_block
from monoformer.train.workload import Pass

DEPTHS = (2, 3)
"""Layers of the networks that are run."""

RUNTIME = {"cpu": 0.35 * 2**30, "cuda": 1.5 * 2**30}
"""Bytes that a process takes before it has a network: the interpreter and its libraries, or the GPU's context."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device by kind."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    """The averaged weights (EMA)."""
    gathered: float
    """FSDP: the whole weights and gradients of what computes just now."""
    activations: float
    """What forward passes keep for backward passes, casts of weights to bf16 included."""
    logits: float
    working: float
    """What the optimizer needs while it steps."""
    shown: float
    """In the first process: a second network, and its cache, for samples and scores while the run goes on."""
    runtime: float
    accumulates: bool
    """Whether gradients are held while a forward pass runs: several passes a step, or DDP's buckets, always there."""

    @property
    def peak(self) -> float:
        """Most bytes at once: activations are gone when the last gradients come and the optimizer steps."""
        held = self.weights + self.optimizer + self.average + self.gathered + self.shown + self.runtime
        passing = self.activations + self.logits + self.accumulates * self.gradients
        return held + max(passing, self.gradients + self.working)


def memory_of(config: RunConfig, load: Pass, *, bf16: bool, on_cpu: bool = False, processes: int = 1) -> Memory:
    """Memory of one of the devices, one a process, on which `train.parallel` has passes like `load` run.

    Raises ValueError for copies that the processes cannot hold.
    """
    parallel = config.train.parallel
    sharded, parts = is_sharded(parallel, processes), parts_of(parallel, processes)
    passes = math.ceil(config.train.rows / processes / load.rows)
    with torch.device("meta"):
        model = MonoFormer(config.model)
    everything = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in model.transformer.blocks[0].parameters())
    root = everything - config.model.layers * block
    state, working = _optimizer_bytes(model, config.train, on_cpu=on_cpu)
    unit = 2 if bf16 else 4
    how = parallel.checkpointing
    peak = activation_bytes(config.model, load, bf16=bf16, checkpointing=how, dense=on_cpu, cast=not sharded)
    logits = min(peak, load.labelled * config.model.vocabulary * (10.0 if bf16 else 8.0))
    return Memory(
        weights=4.0 * everything / parts,
        gradients=4.0 * everything / parts,
        optimizer=state / parts,
        average=4.0 * everything / parts,
        gathered=8.0 * root + (3.0 * unit + 4.0) * block if sharded else 0.0,
        activations=peak - logits,
        logits=logits,
        working=working / parts,
        shown=_shown_bytes(config, 4.0 * everything),
        runtime=RUNTIME["cpu" if on_cpu else "cuda"],
        accumulates=passes > 1 or (processes > 1 and not sharded),
    )


def state_bytes(config: RunConfig) -> float:
    """Bytes of a training checkpoint: weights, averages, optimizer state."""
    with torch.device("meta"):
        model = MonoFormer(config.model)
    return 8.0 * sum(p.numel() for p in model.parameters()) + _optimizer_bytes(model, config.train, on_cpu=False)[0]


def _shown_bytes(config: RunConfig, network: float) -> float:
    """The network of samples and scores, and its cache, all in fp32."""
    slots, model = shown_slots(config.train), config.model
    cache = 8.0 * slots * model.layers * model.kv_heads * model.head_width * model.context
    return network + cache if slots else 0.0


def _optimizer_bytes(model: MonoFormer, config: TrainConfig, *, on_cpu: bool) -> tuple[float, float]:
    """State, and what a step of it works with."""
    named = list(model.named_parameters())
    hidden = [p for name, p in named if is_hidden_matrix(name, p)] if isinstance(config.optimizer, MuonConfig) else []
    rest = sum(p.numel() for _, p in named) - sum(p.numel() for p in hidden)
    groups: dict[torch.Size, int] = {}
    for p in hidden:
        groups[p.shape] = groups.get(p.shape, 0) + p.numel()
    # Muon: matrices of one shape stacked, and two more of the stack; AdamW: on a GPU all square roots at once
    muon = 12.0 * max(groups.values(), default=0)
    adamw = 4.0 * max((p.numel() for _, p in named), default=0) if on_cpu else 4.0 * rest
    return 4.0 * sum(p.numel() for p in hidden) + 8.0 * rest, max(muon, adamw)


class Live(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still held, and the most there were at once."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """`known`: tensors that were there before and do not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: int = 0
        self.peak: int = 0
        self._seen = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._seen:
            return
        self._seen[storage._cdata] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.bytes -= self._seen.pop(key)


def activation_bytes(
    config: ModelConfig,
    load: Pass,
    *,
    bf16: bool,
    checkpointing: Checkpointing = "none",
    dense: bool = False,
    cast: bool = True,
) -> float:
    """Most bytes that a forward and backward pass holds beside weights and gradients.

    `dense`: attention gets its mask as a matrix, as on the CPU. `cast`: fp32 weights are cast to bf16 by autocast and
    the casts are kept (one process, DDP); else the blocks' weights are bf16 already (FSDP).
    """
    find = functools.partial(_peak, load=load, bf16=bf16, checkpointing=checkpointing, dense=dense, cast=cast)
    if config.layers <= max(DEPTHS):
        return float(find(config))
    first, second = (find(replace(config, layers=depth)) for depth in DEPTHS)
    return float(first + (second - first) * (config.layers - DEPTHS[0]))


@contextmanager
def _fake() -> Iterator[None]:
    """Tensors without numbers; what the network remembers from one pass to the next is never one of them."""
    positions_2d.cache_clear()
    try:
        with FakeTensorMode():
            yield
    finally:
        positions_2d.cache_clear()


def _peak(config: ModelConfig, *, load: Pass, bf16: bool, checkpointing: Checkpointing, dense: bool, cast: bool) -> int:
    with _fake():
        model = MonoFormer(config)
        if bf16 and not cast:
            _hold_in_bf16(model.transformer.blocks)
        for block in model.transformer.blocks:
            prepare_block(block, ParallelConfig(checkpointing=checkpointing))
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(_forget_gradient)
        live = Live(model.parameters())
        with live:
            run(model, load, bf16=bf16, dense=dense)
    return int(live.peak)


def run(model: MonoFormer, load: Pass, *, bf16: bool, dense: bool) -> None:
    """A forward and a backward pass over empty text and images."""
    rows, tokens = load.rows, load.tokens
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    mask = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool) if dense else None
    labels = torch.zeros(load.labelled, dtype=torch.long)
    zeros = torch.zeros(load.images, dtype=torch.long)
    height, width = (side * model.config.patch for side in load.grid)
    images = [torch.zeros(load.images, model.config.channels, height, width)] if load.images else []
    times = [torch.zeros(load.images)] * len(images)
    places = [Place(zeros, zeros, load.grid)] * len(images)
    skips: list[Any] = []
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        hidden = model(ids, ids, mask, images=images, times=times, places=places, skips=skips)
        drawn = [
            model.image(hidden, time, place, kept).float()
            for time, place, kept in zip(times, places, skips, strict=True)
        ]
        logits = model.text(hidden.flatten(0, 1).index_select(0, labels)).float()
        losses = [(image - torch.zeros_like(image)).square().sum() for image in drawn]
        loss = torch.stack([F.cross_entropy(logits, labels, reduction="none").sum(), *losses]).sum()
    del hidden, logits, drawn, losses
    loss.backward()  # type: ignore[no-untyped-call]


def _hold_in_bf16(blocks: nn.Module) -> None:
    for module in blocks.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().bfloat16()))


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None
