"""plan: what a run needs, before any GPU is taken."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from monoformer.cli.options import parse_some
from monoformer.cli.training import read_config
from monoformer.train.machines import SHARE, Machines
from monoformer.train.plan import GIB, Plan, make_plan


@dataclass(frozen=True, kw_only=True)
class _Plan(Machines):
    """What a run needs: name a preset (or --config FILE), then these and any option of `monoformer train`; how GPUs
    share it is --train.parallel.
    """

    mfu: float = SHARE
    """Share of the GPUs' peak that necessary operations reach before checkpointing and waiting."""
    images: float = -1.0
    """Pictures in a row, all drawn; below 0: estimated from the kinds of sources."""
    failure_hours: float = 0.0
    """Hours between two failures of the whole; 0: 50,000 hours of one GPU, divided by their number."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mfu <= 1 or self.failure_hours < 0:
            raise ValueError(f"mfu is in (0, 1] and failure-hours 0 or more, not {self.mfu} and {self.failure_hours}")


def plan(arguments: list[str]) -> None:
    """What a run needs: memory by kind, days, checkpoints: monoformer plan PRESET --gpus 8 --gpu h100"""
    options, rest = parse_some(_Plan, arguments, command="plan PRESET")
    machines = Machines(**{name: getattr(options, name) for name in Machines.__dataclass_fields__})
    made = make_plan(
        read_config(rest), machines, share=options.mfu, images=options.images, failure_hours=options.failure_hours
    )
    if options.json:
        print(json.dumps({**asdict(made), "fits": made.fits}))
        return
    console = Console()
    console.print(_table(made))
    for line in made.advice:
        console.print(f"to change: {line}", style="bold", markup=False, soft_wrap=True)
    for line in made.assumed:
        console.print(f"assumed: {line}", style="dim", markup=False, soft_wrap=True)


def _table(made: Plan) -> Table:
    machines, pace, saving = made.machines, made.pace, made.saving
    title = ", ".join([f"{made.name} on {machines.gpus} {machines.gpu}", *_shared(made)])
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_row("parameters", f"{made.parameters / 1e6:,.1f} million", end_section=True)
    for kind in (
        "weights",
        "gradients",
        "optimizer",
        "average",
        "gathered",
        "activations",
        "logits",
        "working",
        *(["shown"] if made.memory.shown else []),
        "runtime",
    ):
        table.add_row(kind, f"{getattr(made.memory, kind) / GIB:,.2f} GiB")
    verdict = "fits" if made.fits else "DOES NOT FIT"
    table.add_row(
        "peak of one GPU", f"{made.peak / GIB:,.1f} of {made.capacity / GIB:,.0f} GiB: {verdict}", end_section=True
    )
    times = f"computes {pace.compute_seconds:,.3g} s, moves {pace.transfer_seconds:,.3g} s"
    written = f"{saving.bytes / 1e9:,.1f} GB, written in {saving.seconds:,.0f} s"
    for name, value in (
        ("tokens a step", f"{made.tokens_per_step:,}, and {made.images_per_step:,.0f} pictures"),
        ("operations a token", f"{made.operations_per_token / 1e9:,.2f} GFLOP"),
        ("operations a step", f"{made.operations_per_step / 1e12:,.1f} TFLOP"),
        ("a step", f"{pace.step_seconds:,.3g} s; {times}"),
        ("MFU", f"{pace.mfu:.0%}"),
        ("throughput", f"{pace.tokens_per_second:,.0f} tokens/s, {pace.images_per_second:,.0f} pictures/s"),
        ("days", f"{pace.days:,.1f}"),
        ("a checkpoint", f"{written}, every {saving.every_minutes:,.0f} minutes"),
        ("goodput", f"{saving.goodput:.1%} with a failure every {saving.failure_hours:,.1f} hours"),
    ):
        table.add_row(name, value)
    return table


def _shared(made: Plan) -> Iterator[str]:
    """How the GPUs share the run, where it makes a difference."""
    parallel = made.parallel
    if made.machines.gpus > 1:
        yield parallel.strategy + (f" in {parallel.replicas} copies" if parallel.replicas > 1 else "")
    if parallel.checkpointing != "none":
        yield f"{parallel.checkpointing} checkpointing"
    if parallel.compile:
        yield "compiled"
