"""What the planner says of memory beside what a training step takes, at three sizes, with and without checkpointing.

python benchmarks/memory.py                       # a minute or two on a CPU; every figure in a process of its own

Measured is the peak of a process that takes three steps, less what it held after one of a tiny network (on a GPU what
the allocator gave out); planned is the plan's sum without `runtime`. On the CPU every larger block is then a mapping of
its own, given back when it is freed; `--heap` measures with the heap as training keeps it, which is faster and holds
more. A table, then one line of JSON. Exit code 1 when a figure is further off than `--tolerance`.
"""

import ctypes
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from network import peak_memory
from rich.console import Console
from rich.table import Table
from train_step import Case, build_trainer, make_batch

from monoformer.config.parallel import Checkpointing
from monoformer.device import choose
from monoformer.train.memory import memory_of
from monoformer.train.workload import Pass

SIZES = {
    "narrow": Case(width=256, layers=6, heads=4, kv_heads=4, mlp_width=704, sequences=16, time="adaln"),
    "middle": Case(),
    "wide": Case(width=1024, layers=12, heads=16, kv_heads=16, mlp_width=2816, sequences=4, vocabulary=16384),
}

TINY: dict[str, Any] = {"width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "mlp_width": 128, "vocabulary": 512}
"""Of the network whose step loads all libraries."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    sizes: tuple[str, ...] = tuple(SIZES)
    checkpointing: tuple[Checkpointing, ...] = ("none", "full")
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: str = "auto"
    tolerance: float = 0.15
    heap: bool = False
    """Measure with the heap as training keeps it."""
    measure: str = ""
    """One case as JSON: measure it in this process and print the bytes."""


def measure(case: Case, *, heap: bool) -> int:
    """Bytes that three steps take at most, beside what the process holds after a step of a tiny network."""
    step(replace(case, **TINY), count=1, heap=heap)
    before = peak_memory(choose(case.device))
    step(case, count=3, heap=heap)
    return peak_memory(choose(case.device)) - before


def step(case: Case, *, count: int, heap: bool) -> None:
    """So many steps of a new trainer."""
    give_back = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not heap else None
    if give_back:
        give_back(-3, 65536)  # M_MMAP_THRESHOLD: larger blocks are mappings of their own
    trainer, batch = build_trainer(case), make_batch(case)
    if give_back:
        give_back(-4, 65536)  # M_MMAP_MAX, which the training loop set to 0
    for _ in range(count):
        trainer.train_step([batch])


def predict(case: Case) -> float:
    """Bytes that the plan says."""
    trainer = build_trainer(case)
    side = case.latent // case.patch
    load = Pass(
        rows=case.sequences, tokens=case.text + side * side, labelled=make_batch(case).labelled, images=case.sequences,
        grid=(side, side),
    )  # fmt: skip
    on_cpu = trainer.parts.device.type == "cpu"
    memory = memory_of(trainer.parts.config, load, bf16=trainer.bf16, on_cpu=on_cpu)
    return memory.peak - memory.runtime


def main() -> None:
    """Measure every case in a fresh process and print it beside the plan."""
    options = tyro.cli(Options)
    if options.measure:
        print(measure(Case(**json.loads(options.measure)), heap=options.heap))
        return
    table = Table("size", "checkpointing", "measured MiB", "planned MiB", "off by", title="memory of a training step")
    lines, worst = [], 0.0
    for size in options.sizes:
        for checkpointing in options.checkpointing:
            case = replace(SIZES[size], checkpointing=checkpointing, precision=options.precision, device=options.device)
            given = ["--measure", json.dumps(asdict(case)), *["--heap"] * options.heap]
            command = [sys.executable, str(Path(__file__)), *given]
            found = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
            said = predict(case)
            off = said / found - 1
            worst = max(worst, abs(off))
            lines.append({"size": size, "checkpointing": checkpointing, "measured": found, "planned": round(said)})
            table.add_row(size, checkpointing, f"{found / 2**20:,.0f}", f"{said / 2**20:,.0f}", f"{off:+.1%}")
    Console().print(table)
    print(json.dumps({"worst": round(worst, 4), "cases": lines, "torch": torch.__version__}))
    sys.exit(worst > options.tolerance)


if __name__ == "__main__":
    main()
