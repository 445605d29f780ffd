"""What machines do with a run: its pace, the moving of weights between GPUs, checkpoints and failures.

Knows the numbers that are assumed of hardware, and nothing of memory. Invariant: seconds are sums that a reader can
follow (docs/scaling.md does).
"""

import math
from dataclasses import dataclass

from monoformer.config.parallel import Checkpointing
from monoformer.config.run import RunConfig
from monoformer.config.spelling import hint
from monoformer.device import GPUS
from monoformer.model.monoformer import MonoFormer
from monoformer.train.memory import state_bytes
from monoformer.train.parallel import parts_of, rows_of_pass

MACHINE = 8
"""GPUs of one machine, joined by their own links."""
NETWORK = 50e9
"""Bytes a second from one machine to the others, for each of its GPUs (a port of 400 Gb/s each)."""
STORAGE = 2e9
"""Bytes a second that one machine writes to or reads from storage."""
SHARE = 0.4
"""Of the peak that necessary operations reach where nothing is computed twice and nothing waits for the network."""
AGAIN: dict[Checkpointing, float] = {"none": 1.0, "selective": 1.05, "full": 4 / 3}
"""Time of a step with checkpointing: full runs every block forward once more."""
RESTART = 300.0
"""Seconds from a failure until processes run again, the checkpoint not yet read."""
GPU_HOURS = 50_000.0
"""Hours of one GPU for each failure: 419 failures of 16,384 GPUs in 54 days (arXiv 2407.21783, section 3.3)."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """On what a run is trained, one process a GPU; how they share it is `train.parallel`."""

    gpus: int = 1
    """GPUs, eight to a machine."""
    gpu: str = "h100"
    """Which one: a short name, such as h100, h200, a100 or rtx4090."""

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ValueError(f"no GPU {self.gpu!r} is known; {hint(self.gpu, GPUS, otherwise=', '.join(GPUS))}")
        if self.gpus < 1:
            raise ValueError(f"gpus must be at least 1, but is {self.gpus}")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast; seconds are of one step."""

    compute_seconds: float
    transfer_seconds: float
    """Of weights and gradients between GPUs; hidden behind computation while it is less."""
    step_seconds: float
    mfu: float
    """Share of the GPUs' peak in necessary operations."""
    tokens_per_second: float
    images_per_second: float
    days: float


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Checkpoints and what failures cost."""

    bytes: float
    seconds: float
    """To write one, while training goes on."""
    every_minutes: float
    failure_hours: float
    """Between two failures of the whole."""
    goodput: float
    """Share of the time that is not lost to failures."""


def rows_on_each(config: RunConfig, machines: Machines) -> tuple[int, str]:
    """Rows that one GPU reads at once, and why training would refuse them (empty: it would not)."""
    train = config.train
    try:
        return rows_of_pass(train.rows, train.pass_rows, machines.gpus), ""
    except ValueError as refused:
        own = math.ceil(train.rows / machines.gpus)
        return min(own, train.pass_rows or own), str(refused)


def computes_bf16(config: RunConfig) -> bool:
    """Whether a GPU would compute in bf16."""
    return config.train.precision != "fp32"


def find_pace(
    model: MonoFormer, config: RunConfig, machines: Machines, *, operations: float, images: float, share: float
) -> Pace:
    """Times of a step that computes and, beside it, moves weights and gradients."""
    gpu = GPUS[machines.gpu]
    peak = machines.gpus * (gpu.bf16 if computes_bf16(config) else gpu.fp32)
    compute = operations * AGAIN[config.train.parallel.checkpointing] / (peak * share)
    transfer = transfer_seconds(model, config, machines)
    step = max(compute, transfer)
    return Pace(
        compute_seconds=compute,
        transfer_seconds=transfer,
        step_seconds=step,
        mfu=operations / step / peak,
        tokens_per_second=config.train.rows * config.sequence.row / step,
        images_per_second=images / step,
        days=config.train.steps * step / 86400,
    )


def transfer_seconds(model: MonoFormer, config: RunConfig, machines: Machines) -> float:
    """Seconds a step for moving weights and gradients.

    DDP sums fp32 gradients once a step: every GPU sends and receives them twice. FSDP gathers the blocks' weights
    forward and backward and spreads fp32 gradients in every pass; copies then sum their parts once a step.
    """
    gpu, parts = GPUS[machines.gpu], parts_of(config.train.parallel, machines.gpus)
    everything = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for p in model.transformer.blocks.parameters())
    passes = math.ceil(config.train.rows / machines.gpus / rows_on_each(config, machines)[0])

    def seconds(sent: float, among: int, *, near: bool) -> float:
        return sent * (among - 1) / among / (gpu.link if near else min(NETWORK, gpu.link))

    copies = machines.gpus // parts
    held = everything / parts
    summed = seconds(8.0 * held, copies, near=machines.gpus <= MACHINE)
    unit = 2.0 if computes_bf16(config) else 4.0
    moved = passes * (2 * unit * blocks + 4.0 * (everything - blocks) + 4.0 * everything)
    return summed + seconds(moved, parts, near=parts <= MACHINE)


def find_saving(config: RunConfig, machines: Machines, *, step_seconds: float, failure_hours: float) -> Saving:
    """What a checkpoint weighs, and what is lost with the run's interval."""
    written = state_bytes(config)
    seconds = written / (STORAGE * math.ceil(machines.gpus / MACHINE))
    hours = failure_hours or GPU_HOURS / machines.gpus
    every = config.train.checkpoint_every * step_seconds
    lost = goodput(every, seconds, hours=hours)
    return Saving(bytes=written, seconds=seconds, every_minutes=every / 60, failure_hours=hours, goodput=lost)


def goodput(every: float, writing: float, *, hours: float) -> float:
    """Share of the time that is not lost, with a checkpoint every so many seconds and a failure every so many hours.

    A failure loses half an interval, the checkpoint that was being written, the restart and the reading.
    """
    return max(0.0, 1 - (every / 2 + writing + RESTART + writing) / (3600 * hours))
