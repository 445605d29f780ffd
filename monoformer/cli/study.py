"""A study's figures as a picture: a panel for each loss and score, a place for each variant, a point for each seed
and a dash for their mean.

Knows nothing of how the figures came about. Invariant: a variant stands where it stands in the study's file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from monoformer.config.sweep import SweepConfig
from monoformer.sweep import Job, Record, latest, outcomes

COLUMNS = 3
"""Panels side by side."""

WIDE = 30.0
"""Means further apart than this factor stand on a logarithmic axis."""


def draw_study(sweep: SweepConfig, jobs: Sequence[Job], records: Sequence[Record], target: Path) -> None:
    """Draw what is finished; no picture where nothing is."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = points(jobs, records)
    if not found:
        return
    variants = [run.name for run in sweep.shown]
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.4 * columns, 3.2 * rows), constrained_layout=True, squeeze=False
    )
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    for axis, (name, own) in zip(axes.flat, found.items(), strict=False):
        places = [place for place, variant in enumerate(variants) if variant in own]
        for place in places:
            axis.plot([place] * len(own[variants[place]]), own[variants[place]], "o", color="tab:blue", alpha=0.4)
        means, line = [fmean(own[variants[place]]) for place in places], "solid" if sweep.ordered else "none"
        axis.plot(places, means, linestyle=line, marker="_", markersize=18, color="tab:blue", linewidth=1.2)
        if min(means) > 0 and max(means) > WIDE * min(means):
            axis.set_yscale("log")
        axis.set_xticks(range(len(variants)), variants, rotation=25, ha="right", fontsize=8)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    figure.suptitle(sweep.title, fontsize=11)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def points(jobs: Sequence[Job], records: Sequence[Record]) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """For each loss and score, for each variant that has it, its value of every finished seed."""
    done = latest(jobs, records)
    found: dict[str, dict[str, list[float]]] = {}
    for job in jobs:
        record = done.get(job.digest, {"error": "not begun"})
        if "error" not in record and job.run.shown:
            for name, value in outcomes(record).items():
                found.setdefault(name, {}).setdefault(job.run.name, []).append(value)
    return found
