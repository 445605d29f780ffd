"""A run's `metrics.jsonl` as a picture.

Knows nothing of how the lines came about. Invariant: a panel is drawn where there is something to show; a resumed run's
picture is that of a run that never stopped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monoformer.train.metrics import read_metrics

CURVES = (
    ("text_loss", "text loss (nats a token)"),
    ("image_loss", "image loss"),
    ("images_per_second", "images / s"),
)
"""What a run of the model shows: names in `metrics.jsonl` and titles; losses get a logarithmic axis."""

PARTS = (
    ("image_loss_by_level", "image loss by noise level (0 clean, 1 noise)"),
    ("image_loss_by_source", "image loss by source"),
    ("text_loss_by_source", "text loss by source"),
    ("scores", "scores"),
)
"""Names of several curves that share a panel, and titles; drawn where the lines have them."""

COLUMNS = 3
"""Panels side by side."""


def draw_curves(path: Path, target: Path, *, shown: Sequence[tuple[str, str]] = CURVES) -> None:
    """Curves of a `metrics.jsonl`: what `shown` names, then losses by level and source and scores where there are."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines = read_metrics(path)
    panels = panels_of(lines, shown)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width, height = 4 * columns, 3.2 * rows
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    # inches, since the run waits: a layout that finds them itself takes as long as all the rest
    figure.subplots_adjust(left=0.75 / width, right=1 - 0.15 / width, bottom=0.5 / height, top=1 - 0.35 / height)
    figure.subplots_adjust(wspace=0.27, hspace=0.38)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (name, title) in zip(axes.flat, panels, strict=False):
        values = _draw(axis, lines, name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if "loss" in name and values and min(values) > 0:
            axis.set_yscale("log")
    figure.savefig(target, dpi=110, pil_kwargs={"compress_level": 1})
    plt.close(figure)


def panels_of(lines: Sequence[dict[str, Any]], shown: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Names and titles of what is drawn: `shown`, and what is parted where the lines have it."""
    return [*shown, *((name, title) for name, title in PARTS if any(name in line for line in lines))]


def _draw(axis: Any, lines: Sequence[dict[str, Any]], name: str) -> list[float]:
    """One curve, or one for each part of a number that is parted; all values drawn."""
    found = [(line["step"], line[name]) for line in lines if name in line]
    if not found or not isinstance(found[-1][1], dict):
        if found:
            axis.plot(*zip(*found, strict=True), linewidth=1.2)
        return [value for _, value in found]
    for part in sorted({part for _, values in found for part in values}):
        points = [(step, values[part]) for step, values in found if part in values]
        axis.plot(*zip(*points, strict=True), linewidth=1.2, marker="." if len(points) < 30 else None, label=part)
    axis.legend(fontsize=7)
    return [value for _, values in found for value in values.values()]
