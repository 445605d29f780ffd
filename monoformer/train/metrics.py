"""What a run writes down: `metrics.jsonl` first, then trackers and a progress bar from the same numbers.

Knows nothing of models. Invariant: one JSON object a line, each with its `step`; a resumed run first forgets the lines
after its checkpoint, so that the file reads as if nothing had happened.
"""

import json
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from monoformer.device import host_peak
from monoformer.files import whole_file
from monoformer.train.breakdown import Breakdown
from monoformer.train.parallel import Ranks
from monoformer.train.tracking import Tracking

CLOCK = (
    *("seconds", "data_wait", "tokens_per_second", "images_per_second", "mfu"),
    *("host_peak_gib", "device_peak_gib"),
)
"""Names in a line that tell of the machine; all others are the same whenever the run is."""


class Metrics:
    """Running means between two lines of `metrics.jsonl`."""

    def __init__(self, path: Path, *, breakdown: Breakdown | None = None) -> None:
        """`breakdown` is what the training step adds its losses by source and by level to."""
        self.path, self.breakdown = path, breakdown
        self.tracking: Tracking | None = None
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def forget_after(self, step: int) -> None:
        """Drop lines past a checkpoint that the run resumes from."""
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n") and line.strip()]  # a full disk may cut the last
            kept = "".join(line for line in whole if json.loads(line)["step"] <= step)
            with whole_file(self.path) as incomplete:
                incomplete.write_text(kept, encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """Sums since the last line."""
        parts = {} if self.breakdown is None else {"breakdown": self.breakdown.state_dict()}
        return {"sums": dict(self._sums), "counts": dict(self._counts), **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums of a checkpoint."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
        if self.breakdown is not None:
            self.breakdown.load_state_dict(state.get("breakdown", []))  # older checkpoints have none

    def add(self, values: dict[str, float], *, totals: dict[str, float]) -> None:
        """Note one step: `values`, the step's `seconds` among them, are averaged; `totals` (`tokens_per_second`, ...)
        become rates in these seconds, so that what is done between steps (samples, scores, a pause) counts for none.
        """
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        for name, value in totals.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if self.breakdown is not None:
            self.breakdown.keep()

    @property
    def empty(self) -> bool:
        """Whether no step was noted since the last line."""
        return not self._sums

    def collect(self, ranks: Ranks) -> None:
        """Bring the losses that other processes added up to the first one, which writes the lines."""
        if self.breakdown is not None:
            self.breakdown.collect(ranks)

    def drop(self) -> None:
        """Leave out the step that has just been done."""
        if self.breakdown is not None:
            self.breakdown.drop()

    def write(self, step: int, **more: float) -> dict[str, float]:
        """Append one line with what came since the last, and start anew; returns it."""
        elapsed = max(self._sums.get("seconds", 0.0), 1e-9)
        line: dict[str, float] = {"step": step}
        for name, value in self._sums.items():
            line[name] = value / self._counts[name] if name in self._counts else value / elapsed
        line |= more
        parts = {} if self.breakdown is None else self.breakdown.read()
        short = {kind: {name: _short(value) for name, value in means.items()} for kind, means in parts.items()}
        self.append({**{name: _short(value) for name, value in line.items()}, **short})
        self._sums, self._counts = {}, {}
        return line

    def append(self, line: dict[str, Any]) -> None:
        """Write one line as it is."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.tracking is not None:
            self.tracking.write(line)

    def close(self) -> None:
        """End what the lines also went to."""
        if self.tracking is not None:
            self.tracking.close()


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a `metrics.jsonl`."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def memory_peaks(device: torch.device) -> dict[str, float]:
    """Most memory held so far, in GiB: the process's, and that of a CUDA device."""
    peaks = {"host_peak_gib": host_peak() / 2**30}
    if device.type == "cuda":
        peaks["device_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return peaks


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
