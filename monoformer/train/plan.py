"""What a run needs before it is started: memory of each GPU, operations, days, checkpoints; and what to change.

Nothing is loaded and no weight exists: the network is built on the meta device. What cannot be known is said in
`assumed`. How processes share the run is what the configuration says, as in training (`train.parallel`). Invariant: a
plan refuses nothing but a GPU that it does not know, and copies that the GPUs cannot hold.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch

from monoformer.config.parallel import ParallelConfig
from monoformer.config.run import RunConfig
from monoformer.device import GPUS, total_memory
from monoformer.model.monoformer import MonoFormer
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
    rows_on_each,
)
from monoformer.train.memory import Memory, memory_of
from monoformer.train.operations import Operations
from monoformer.train.parallel import ALONE, Ranks, parts_of, rows_of_pass
from monoformer.train.precision import computes_in_bf16
from monoformer.train.workload import Pass, compose, resolved, seen_by

GIB = 2**30
GOOD = 0.9
"""Share of the time that is not to be lost."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs."""

    name: str
    machines: Machines
    parallel: ParallelConfig
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
    rows, _ = rows_on_each(config, machines)
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
        parallel=config.train.parallel,
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
        assumed=(*guessed, told, *said(config, machines, share)),
    )


def memory_on(config: RunConfig, machines: Machines, load: Pass) -> Memory:
    """Memory of one GPU."""
    return memory_of(config, load, bf16=computes_bf16(config), processes=machines.gpus)


def advise_memory(config: RunConfig, machines: Machines, load: Pass, memory: Memory) -> Iterator[str]:
    """What makes a run fit that does not, by what it costs in time: the first of the ways that suffices."""
    capacity = GPUS[machines.gpu].memory * GIB
    if memory.peak <= capacity:
        return
    for parallel in sparing(config, machines):
        tried = replace(config, train=replace(config.train, parallel=parallel))
        rows, peak = _most_rows(tried, machines, load, capacity)
        if rows:
            options = _options(config.train.parallel, parallel)
            options += [f"--train.pass-rows {rows}"] * (rows != load.rows)
            yield f"it does not fit; {peak / GIB:.1f} GiB would do with {' '.join(options)}"
            return
    yield f"it does not fit on {machines.gpus} {machines.gpu}, whatever is checkpointed; take more GPUs, or larger ones"


def sparing(config: RunConfig, machines: Machines) -> list[ParallelConfig]:
    """The run's own way, then those that hold less; what training would refuse is not among them."""
    given, levels = config.train.parallel, list(AGAIN)
    ways = [given]
    if machines.gpus > 1:
        ways.append(replace(given, strategy="fsdp", replicas=1))
    tried = [replace(way, checkpointing=how) for way in ways for how in levels[levels.index(given.checkpointing) :]]
    return list(dict.fromkeys(tried))


def _options(given: ParallelConfig, other: ParallelConfig) -> list[str]:
    """What turns one into the other, as options of `train`."""
    before, after = asdict(given), asdict(other)
    return [f"--train.parallel.{name} {value}" for name, value in after.items() if value != before[name]]


def _most_rows(config: RunConfig, machines: Machines, load: Pass, capacity: float) -> tuple[int, float]:
    """Rows of a pass, of even passes, and the peak then; 0 rows where not even one fits."""
    if memory_on(config, machines, load.times(1 / load.rows)).peak > capacity:
        return 0, 0.0
    own, rows = math.ceil(config.train.rows / machines.gpus), load.rows
    while (peak := memory_on(config, machines, load.times(rows / load.rows)).peak) > capacity and rows > 1:
        rows = max(fewer for fewer in range(1, rows // 2 + 1) if own % fewer == 0)
    return rows, peak


def advise_pace(config: RunConfig, machines: Machines, pace: Pace, saving: Saving) -> Iterator[str]:
    """What slows a run down."""
    _, refused = rows_on_each(config, machines)
    if refused:
        yield refused
    if pace.transfer_seconds > pace.compute_seconds:
        copies = machines.gpus // math.gcd(machines.gpus, MACHINE)  # of parts that a machine holds
        spans = parts_of(config.train.parallel, machines.gpus) > MACHINE and copies < machines.gpus
        change = f"--train.parallel.replicas {copies} keeps them within a machine" if spans else "more rows a step"
        own = config.train.rows // machines.gpus
        if not spans and 0 < config.train.pass_rows < own:
            change = f"larger passes, up to --train.pass-rows {own}"
        yield f"GPUs wait {pace.step_seconds - pace.compute_seconds:.2f} s a step for the others' weights; {change}"
    if saving.goodput < GOOD:
        steps = max(1, int(600 / pace.step_seconds))
        then = goodput(600, saving.seconds, hours=saving.failure_hours)
        yield f"failures cost {1 - saving.goodput:.0%}; with --train.checkpoint-every {steps} {1 - then:.0%}"


def warn_of_memory(config: RunConfig, device: torch.device, ranks: Ranks = ALONE) -> Iterator[str]:
    """What there is to say before a run starts on a device whose memory will not do; nothing where it will.

    A run that a bound from above leaves half of the memory is not looked at, since a plan takes seconds.
    """
    model, on_cpu = config.model, device.type == "cpu"
    capacity = total_memory(device) / (ranks.local_world if on_cpu else 1)  # each process has a GPU of its own
    rows = rows_of_pass(config.train.rows, config.train.pass_rows, ranks.world)
    tokens = rows * config.sequence.row
    with torch.device("meta"):
        everything = sum(p.numel() for p in MonoFormer(model).parameters())
    most = tokens * model.layers * 4 * (40 * model.width + 6 * model.mlp_width + config.sequence.row)
    most += 32 * everything + tokens * model.vocabulary * 12
    if not capacity or (most < capacity / 2 and model.image_patches == "linear"):
        return
    load, _, _ = compose(config, rows=rows)
    bf16 = computes_in_bf16(config.train, device)
    memory = memory_of(config, load, bf16=bf16, on_cpu=on_cpu, processes=ranks.world)
    if memory.peak > capacity:
        each = " for each process" if ranks.world > 1 else ""
        yield (
            f"a step needs about {memory.peak / GIB:.1f} GiB, and {device} has {capacity / GIB:.1f}{each}; lower "
            f"--train.pass-rows, or see `monoformer plan`"
        )


def said(config: RunConfig, machines: Machines, share: float) -> Iterator[str]:
    """What is assumed of the machines, and what of the run is not looked at."""
    train = config.train
    yield f"{share:.0%} of the peak in necessary operations, before checkpointing ({train.parallel.checkpointing})"
    if train.parallel.compile:
        yield "blocks as they are without torch.compile, which keeps less"
    if train.freeze != "none" or train.lora.rank:
        yield "all weights trained: gradients, averages and optimizer state as without train.freeze and train.lora"
    if machines.gpus > 1:
        yield f"{MACHINE} GPUs a machine, {NETWORK / 1e9:.0f} GB/s from each to other machines, while it computes"
    yield f"{STORAGE / 1e9:.0f} GB/s to storage from each machine, {RESTART / 60:.0f} minutes to restart"
    yield "no frozen autoencoder or vision encoder on the GPU; latents or pixels at hand"
