"""The loop around a training step: read, step, write down, save, resume, stop.

Knows nothing of what is trained: the step is a function that somebody else passes in. Invariants: a run killed at any
moment and started again ends with the same bits (DESIGN 4); a gradient that is not finite never reaches the weights.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import torch
from rich.progress import Progress, TaskID
from torch import Tensor

from monoformer.config.autoencoder import AutoencoderRun
from monoformer.config.run import RunConfig, from_json, save_config, to_json
from monoformer.config.train import TrainConfig
from monoformer.data.loader import Loader
from monoformer.data.skipped import Tally
from monoformer.device import has_bf16_units, keep_freed_memory
from monoformer.train.breakdown import Breakdown
from monoformer.train.checkpoint import TrainState, checkpoints, load_checkpoint, read_progress, save_checkpoint
from monoformer.train.curves import CURVES, draw_curves
from monoformer.train.metrics import Metrics, memory_peaks, progress_bar
from monoformer.train.optim import rate_factor, set_rates
from monoformer.train.tracking import Tracking

T = TypeVar("T")

Sample = Callable[[int, dict[str, Tensor]], Path | None]
"""sample(step, averaged weights): draws whatever somebody wants to see while the run goes on; the picture's file."""

Numbers = dict[str, float]

Scores = Callable[[int, dict[str, Tensor]], Numbers]
"""scores(step, averaged weights): how well the model does what it is for."""

MAY_CHANGE = (
    *("name", "folder", "generate", "train.steps", "train.device"),
    *("train.log_every", "train.tensorboard", "train.wandb"),
    *("train.checkpoint_every", "train.keep", "train.sample_every"),
    *("train.evaluate_every", "train.evaluate_count", "train.bad_steps", "train.skip_limit"),
)
"""Fields that may differ when a run is resumed; everything else would make it another run."""


class Loop(Generic[T]):
    """One run in its folder, whatever it trains; T is what the loader yields."""

    def __init__(
        self,
        config: RunConfig | AutoencoderRun,
        state: TrainState,
        *,
        describe: Callable[[Numbers], str],
        sample: Sample | None = None,
        scores: Scores | None = None,
        curves: Sequence[tuple[str, str]] = CURVES,
        breakdown: Breakdown | None = None,
    ) -> None:
        self.config, self.train, self.folder, self.state = config, config.train, config.path, state
        self.describe, self.sample, self.scores, self.curves = describe, sample, scores, curves
        self.metrics = Metrics(self.folder / "metrics.jsonl", breakdown=breakdown)
        self.device = next(state.model.parameters()).device
        self.step = 0
        self.bad_steps = 0
        self._stopping = False
        self._saved = 0
        self._failure: ValueError | None = None
        self._told: set[tuple[str, str]] = set()
        if self.device.type == "cpu":
            keep_freed_memory()

    def descend(self) -> float:
        """Step the optimisers along the clipped gradients at hand, then the averages; the norm before clipping.

        Gradients that are not finite are thrown away: the step changes nothing and is counted in `bad_steps`.
        """
        limit = self.train.clip or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.state.model.parameters(), limit))
        if math.isfinite(norm):
            set_rates(self.state.optimizers, rate_factor(self.step, self.train))
            for optimizer in self.state.optimizers:
                optimizer.step()
            self.state.ema.update(self.state.model)
        else:
            self.bad_steps += 1
        self.state.model.zero_grad(set_to_none=True)
        self.step += 1
        return norm

    def run(
        self,
        loader: Loader[Any, T],
        train_step: Callable[[list[T]], Numbers],
        count: Callable[[list[T]], tuple[Numbers, Numbers]],
        *,
        passes: int = 1,
    ) -> bool:
        """Train to the last step, resuming what the folder holds. False: stopped early, saved, ready to go on.

        `count` says of what a step read which numbers are averaged and which are added up to rates a second.
        """
        self._open_folder(loader)
        self.state.model.train()
        with closing(self.metrics), stop_signals(self.stop), progress_bar() as bar:
            if self.step < self.train.steps:
                self._open_tracking(bar)
            task = bar.add_task(self.config.name, total=self.train.steps, completed=self.step, numbers="")
            while self.step < self.train.steps and not self._stopping:
                started, place, bad = time.perf_counter(), loader.state_dict(), self.bad_steps
                try:
                    read = [next(loader) for _ in range(passes)]
                except ValueError as error:  # the data is to blame: what was learned is kept
                    loader.load_state_dict(place)
                    self._failure = error
                    break
                waited = time.perf_counter() - started
                losses = train_step(read)
                if self.bad_steps > bad:
                    self._write_down_bad(place, losses, bar)
                    continue
                seconds = time.perf_counter() - started
                means, totals = count(read)
                self.metrics.add({**losses, **means, "data_wait": waited / seconds, "seconds": seconds}, totals=totals)
                self._write_down(loader, bar, task)
        loader.close()
        if self._saved != self.step:
            self.save(loader)
        if self._failure:
            raise self._failure
        return not self._stopping

    def stop(self) -> None:
        """End the run after the step in progress."""
        self._stopping = True

    def save(self, loader: Loader[Any, T]) -> Path:
        """Write a checkpoint."""
        progress = {
            "loader": loader.state_dict(),
            "config": to_json(self.config),
            "metrics": self.metrics.state_dict(),
            "bad_steps": self.bad_steps,
        }
        self._saved = self.step
        folder = self.folder / "checkpoints"
        return save_checkpoint(folder, self.state, step=self.step, progress=progress, keep=self.train.keep)

    def _write_down(self, loader: Loader[Any, T], bar: Progress, task: TaskID) -> None:
        """Metrics, samples and checkpoints where their time has come."""
        last = self.step == self.train.steps or self._stopping
        if self.step % self.train.log_every == 0 or last:
            rate = rate_factor(self.step - 1, self.train)
            peaks = memory_peaks(self.device)
            line = self.metrics.write(self.step, rate_factor=rate, skipped=loader.skipped.total, **peaks)
            bar.update(task, numbers=self.describe(line))
            self._tell_skipped(loader.skipped, bar)
        bar.update(task, completed=self.step)
        if self.scores and self._is_time(self.train.evaluate_every, last=last):
            self.metrics.append({"step": self.step, "scores": self.scores(self.step, self.state.ema.weights)})
        if self.step % self.train.checkpoint_every == 0 or last:
            self.save(loader)
            draw_curves(self.metrics.path, self.folder / "curves.png", shown=self.curves)
        if self.sample and self._is_time(self.train.sample_every, last=last):
            picture = self.sample(self.step, self.state.ema.weights)
            if picture and self.metrics.tracking:
                self.metrics.tracking.show(self.step, picture)

    def _is_time(self, every: int, *, last: bool) -> bool:
        return every > 0 and (self.step % every == 0 or last)

    def _write_down_bad(self, place: dict[str, Any], losses: Numbers, bar: Progress) -> None:
        """Say where a step's documents are; stop the run, saved, when there were too many such steps."""
        self.metrics.drop()
        path = self.folder / "bad-steps" / f"step-{self.step:08d}.json"
        path.parent.mkdir(exist_ok=True)
        told = {name: str(value) for name, value in losses.items()}
        path.write_text(json.dumps({"step": self.step, "losses": told, "loader": place}, indent=2), encoding="utf-8")
        bar.console.print(f"step {self.step} has no finite gradient and is left out; its documents: {path}")
        if self.bad_steps >= self.train.bad_steps:
            self._failure = ValueError(
                f"{self.bad_steps} steps had no finite gradient; the run is saved at step {self.step}, its weights "
                f"finite. Lower the learning rate, try --train.precision fp32, or look at the documents in "
                f"{path.parent}; --train.bad-steps {2 * self.train.bad_steps} lets it go on"
            )
            self.stop()

    def _tell_skipped(self, tally: Tally, bar: Progress) -> None:
        """Keep `skipped.json` up to date, and say once of each source and cause what is skipped."""
        if tally.total:
            text = json.dumps(tally.state_dict(), indent=1, ensure_ascii=False)
            (self.folder / "skipped.json").write_text(text + "\n", encoding="utf-8")
        for source, cause, count, examples in tally.entries():
            if (source, cause) not in self._told:
                self._told.add((source, cause))
                say = f"skipped {count} of {tally.read(source)} documents of {source}: {cause} ({examples[0]})"
                bar.console.print(f"{say}; more in {self.folder / 'skipped.json'}", markup=False)

    def _open_tracking(self, bar: Progress) -> None:
        """Begin to tell TensorBoard and others; says once what is missing."""
        self.metrics.tracking = Tracking(self.config, step=self.step)
        if self.metrics.tracking.note:
            bar.console.print(self.metrics.tracking.note, style="dim", markup=False)

    def _open_folder(self, loader: Loader[Any, T]) -> None:
        """Resume from the newest checkpoint, or begin; refuses a folder that holds another run."""
        found = checkpoints(self.folder / "checkpoints")
        if found:
            progress = read_progress(found[-1])
            before = from_json(type(self.config), progress["config"], where=str(found[-1]))  # fields since: defaults
            check_same_run(to_json(before), to_json(self.config), self.folder)
            load_checkpoint(found[-1], self.state, progress)
            self.step = self._saved = int(progress["step"])
            self.bad_steps = progress.get("bad_steps", 0)
            self.metrics.load_state_dict(progress["metrics"])
            loader.load_state_dict(progress["loader"])
            self.metrics.forget_after(self.step)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.metrics.path.unlink(missing_ok=True)
            (self.folder / "skipped.json").unlink(missing_ok=True)
        save_config(self.config, self.folder / "config.json")


def computes_in_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether matrix products are in bfloat16: asked for, or left open where the device has units for it."""
    return config.precision == "bf16" or (config.precision == "auto" and has_bf16_units(device))


def check_same_run(saved: dict[str, Any], given: dict[str, Any], folder: Path) -> None:
    """Refuse to go on in a folder whose run had other settings than those that may change."""
    before, now = _flatten(saved), _flatten(given)
    changed = [
        name
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not any(name == m or name.startswith(f"{m}.") for m in MAY_CHANGE)
    ]
    if changed:
        first = changed[0]
        raise ValueError(
            f"{folder} holds another run: {first} was {before.get(first)!r} and is now {now.get(first)!r}"
            f"{f' ({len(changed)} fields differ)' if len(changed) > 1 else ''}; "
            f"give --name NEW for a new run, or the old settings to go on"
        )


def _flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, dict):
        return {
            k: v
            for key, value in data.items()
            for k, v in _flatten(value, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: data}


@contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after the step in progress; a second one ends it at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals belong to somebody else
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
