"""What a run writes down: `metrics.jsonl` first, then `curves.png` and a progress bar made from the same numbers.

Knows nothing of models. Invariant: one JSON object a line, each with its `step`; a resumed run first forgets the lines
after its checkpoint, so that the file reads as if nothing had happened.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Metrics:
    """Running means between two lines of `metrics.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._since = time.perf_counter()

    def forget_after(self, step: int) -> None:
        """Drop lines past a checkpoint that the run resumes from."""
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n") and line.strip()]  # a full disk may cut the last
            kept = "".join(line for line in whole if json.loads(line)["step"] <= step)
            beside = self.path.with_suffix(".incomplete")
            beside.write_text(kept, encoding="utf-8")
            beside.replace(self.path)  # never half written, whenever the run is killed

    def state_dict(self) -> dict[str, Any]:
        """Sums since the last line."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums of a checkpoint."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])

    def add(self, values: dict[str, float], *, totals: dict[str, float]) -> None:
        """Note one step: `values` are averaged, `totals` (tokens, images) become rates a second."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        for name, value in totals.items():
            key = f"{name}_per_second"
            self._sums[key] = self._sums.get(key, 0.0) + value

    def write(self, step: int, **more: float) -> dict[str, float]:
        """Append one line with what came since the last, and start anew; returns it."""
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        line: dict[str, float] = {"step": step}
        for name, value in self._sums.items():
            line[name] = value / self._counts[name] if name in self._counts else value / elapsed
        line |= more
        self.append({name: _short(value) for name, value in line.items()})
        self._sums, self._counts, self._since = {}, {}, time.perf_counter()
        return line

    def append(self, line: dict[str, Any]) -> None:
        """Write one line as it is."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a `metrics.jsonl`."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


CURVES = (
    ("text_loss", "text loss (nats a token)"),
    ("image_loss", "image loss"),
    ("images_per_second", "images / s"),
)
"""What a run of the model shows: names in `metrics.jsonl` and titles; losses get a logarithmic axis."""


def draw_curves(path: Path, target: Path, *, shown: Sequence[tuple[str, str]] = CURVES) -> None:
    """Loss and speed curves of a `metrics.jsonl` as a picture, and the scores where the run was evaluated."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines = read_metrics(path)
    scored = [line for line in lines if "scores" in line]
    columns = len(shown) + bool(scored)
    figure, axes = plt.subplots(1, columns, figsize=(4 * columns, 3.2), constrained_layout=True)
    if scored:
        for name in scored[-1]["scores"]:
            points = [(line["step"], line["scores"][name]) for line in scored if name in line["scores"]]
            axes[-1].plot(*zip(*points, strict=True), linewidth=1.2, marker=".", label=name)
        axes[-1].set_title("scores", fontsize=10)
        axes[-1].set_xlabel("step")
        axes[-1].grid(alpha=0.3)
        axes[-1].legend(fontsize=7)
    for axis, (name, title) in zip(axes, shown, strict=False):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axis.plot(*zip(*points, strict=True), linewidth=1.2)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if "loss" in name and points and min(value for _, value in points) > 0:
            axis.set_yscale("log")
    figure.savefig(target, dpi=110)
    plt.close(figure)


def progress_bar(*, shown: bool = True) -> Progress:
    """The live bar of a run: losses, images a second, time left."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        refresh_per_second=2,
        disable=not shown,
    )
