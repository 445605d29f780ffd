"""What a run needs before it is started: memory of each GPU, operations, days, checkpoints; and what to change.

Nothing is loaded and no weight exists: the network is built on the meta device. What cannot be known is said in
`assumed`. Invariant: a plan refuses nothing but a GPU that it does not know.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from monoformer.config.run import RunConfig
from monoformer.device import GPUS, total_memory
from monoformer.model.monoformer import MonoFormer
from monoformer.train.loop import computes_in_bf16
from monoformer.train.machines import (
    AGAIN,
    MACHINE,
    NETWORK,
    RESTART,
    SHARE,
    STORAGE,
    Machines,
    Pace,
    Saving,
    computes_bf16,
    find_pace,
    find_saving,
    goodput,
    rows_of_pass,
)
from monoformer.train.memory import Memory, memory_of
from monoformer.train.operations import Operations
from monoformer.train.workload import Pass, compose, resolved, seen_by

GIB = 2**30
GOOD = 0.9
"""Share of the time that is not to be lost."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs."""

    name: str
    machines: Machines
    parameters: int
    memory: Memory
    peak: float
    """Most bytes of one GPU at once."""
    capacity: float
    """Bytes that it has."""
    tokens_per_step: int
    images_per_step: float
    operations_per_token: float
    operations_per_step: float
    pace: Pace
    saving: Saving
    advice: tuple[str, ...]
    assumed: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return self.peak <= self.capacity


def make_plan(
    config: RunConfig, machines: Machines, *, share: float = SHARE, images: float = -1.0, failure_hours: float = 0.0
) -> Plan:
    """The plan of a run: `images` to a row (below 0: estimated), hours between failures (0: by the number of GPUs)."""
    config, guessed = resolved(config)
    rows = rows_of_pass(config, machines)
    load, seen, told = compose(config, rows=rows, images=images)
    with torch.device("meta"):
        model = MonoFormer(config.model)
    passes = config.train.rows / rows
    operations, tokens = Operations(model).count(seen_by(load, seen)) * passes, config.train.rows * config.sequence.row
    memory, capacity = memory_on(config, machines, load), GPUS[machines.gpu].memory * GIB
    pace = find_pace(model, config, machines, operations=operations, images=load.images * passes, share=share)
    saving = find_saving(config, machines, step_seconds=pace.step_seconds, failure_hours=failure_hours)
    return Plan(
        name=config.name,
        machines=machines,
        parameters=sum(p.numel() for p in model.parameters()),
        memory=memory,
        peak=memory.peak,
        capacity=capacity,
        tokens_per_step=tokens,
        images_per_step=load.images * passes,
        operations_per_token=operations / tokens,
        operations_per_step=operations,
        pace=pace,
        saving=saving,
        advice=(*advise_memory(config, machines, load, memory), *advise_pace(config, machines, pace, saving)),
        assumed=(*guessed, told, *said(machines, share)),
    )


def memory_on(config: RunConfig, machines: Machines, load: Pass) -> Memory:
    """Memory of one GPU. DDP holds its buckets of gradients at all times."""
    passes = math.ceil(config.train.rows / machines.gpus / load.rows)
    replicated = machines.strategy == "ddp" and machines.gpus > 1
    return memory_of(
        config,
        load,
        bf16=computes_bf16(config),
        checkpointing=machines.checkpointing,
        parts=machines.parts,
        accumulates=passes > 1 or replicated,
    )


def advise_memory(config: RunConfig, machines: Machines, load: Pass, memory: Memory) -> Iterator[str]:
    """What makes a run fit that does not, by what it costs in time: the first of the ways that suffices."""
    capacity = GPUS[machines.gpu].memory * GIB
    if memory.peak <= capacity:
        return
    strategies: list[Literal["ddp", "fsdp"]] = ["ddp", "fsdp"] if machines.gpus > 1 else ["ddp"]
    levels = list(AGAIN)
    for strategy in strategies[strategies.index(machines.strategy) :]:
        for how in levels[levels.index(machines.checkpointing) :]:
            tried = replace(machines, strategy=strategy, checkpointing=how)
            rows, peak = _most_rows(config, tried, load, capacity)
            if rows:
                options = [f"--strategy {strategy}"] * (strategy != machines.strategy)
                options += [f"--checkpointing {how}"] * (how != machines.checkpointing)
                options += [f"--train.pass-rows {rows}"] * (rows != load.rows)
                yield f"it does not fit; {peak / GIB:.1f} GiB would do with {' '.join(options)}"
                return
    yield f"it does not fit on {machines.gpus} {machines.gpu}, whatever is checkpointed; take more GPUs, or larger ones"


def _most_rows(config: RunConfig, machines: Machines, load: Pass, capacity: float) -> tuple[int, float]:
    """Rows of a pass, halved until they fit, and the peak then; 0 rows where not even one fits."""
    if memory_on(config, machines, load.times(1 / load.rows)).peak > capacity:
        return 0, 0.0
    rows = load.rows
    while (peak := memory_on(config, machines, load.times(rows / load.rows)).peak) > capacity and rows > 1:
        rows //= 2
    return rows, peak


def advise_pace(config: RunConfig, machines: Machines, pace: Pace, saving: Saving) -> Iterator[str]:
    """What slows a run down."""
    if config.train.rows % (machines.gpus * rows_of_pass(config, machines)):
        yield f"{machines.gpus} GPUs cannot share train.rows = {config.train.rows} evenly; choose a multiple"
    if pace.transfer_seconds > pace.compute_seconds:
        within = machines.strategy == "fsdp" and machines.parts > MACHINE
        change = f"--replicas {machines.gpus // MACHINE} keeps them within a machine" if within else "more rows a step"
        yield f"GPUs wait {pace.step_seconds - pace.compute_seconds:.2f} s a step for the others' weights; {change}"
    if saving.goodput < GOOD:
        steps = max(1, int(600 / pace.step_seconds))
        then = goodput(600, saving.seconds, hours=saving.failure_hours)
        yield f"failures cost {1 - saving.goodput:.0%}; with --train.checkpoint-every {steps} {1 - then:.0%}"


def warn_of_memory(config: RunConfig, device: torch.device) -> Iterator[str]:
    """What there is to say before a run starts on a device whose memory will not do; nothing where it will.

    A run that a bound from above leaves half of the memory is not looked at, since a plan takes seconds.
    """
    capacity, model = total_memory(device), config.model
    rows = config.train.pass_rows or config.train.rows
    tokens = rows * config.sequence.row
    with torch.device("meta"):
        everything = sum(p.numel() for p in MonoFormer(model).parameters())
    most = tokens * model.layers * 4 * (40 * model.width + 6 * model.mlp_width + config.sequence.row)
    most += 32 * everything + tokens * model.vocabulary * 12
    if not capacity or (most < capacity / 2 and model.image_patches == "linear"):
        return
    load, _, _ = compose(config, rows=rows)
    memory = memory_of(
        config,
        load,
        bf16=computes_in_bf16(config.train, device),
        on_cpu=device.type == "cpu",
        accumulates=rows < config.train.rows,
    )
    if memory.peak > capacity:
        yield (
            f"a step needs about {memory.peak / GIB:.1f} GiB, and {device} has {capacity / GIB:.1f}; lower "
            f"--train.pass-rows, or see `monoformer plan`"
        )


def said(machines: Machines, share: float) -> Iterator[str]:
    """What is assumed of the machines."""
    yield f"{share:.0%} of the peak in necessary operations, before checkpointing ({machines.checkpointing})"
    if machines.gpus > 1:
        yield f"{MACHINE} GPUs a machine, {NETWORK / 1e9:.0f} GB/s from each to other machines, while it computes"
    yield f"{STORAGE / 1e9:.0f} GB/s to storage from each machine, {RESTART / 60:.0f} minutes to restart"
    yield "no frozen autoencoder or vision encoder on the GPU; latents or pixels at hand"
