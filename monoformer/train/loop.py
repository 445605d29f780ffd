"""The loop around a training step: read, step, write down, save, resume, stop.

Knows nothing of what is trained: the step is a function that somebody else passes in. Invariants: a run killed at any
moment and started again ends with the same bits (DESIGN 4); a gradient that is not finite never reaches the weights.
"""

import errno
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.progress import Progress, TaskID
from torch import Tensor

from monoformer.config.autoencoder import AutoencoderRun
from monoformer.config.run import RunConfig, from_json, save_config, to_json
from monoformer.data.loader import Loader
from monoformer.device import keep_freed_memory, left_to_live
from monoformer.train.breakdown import Breakdown
from monoformer.train.checkpoint import Checkpoints, TrainState, checkpoints, load_checkpoint, read_progress
from monoformer.train.curves import CURVES, draw_curves
from monoformer.train.guards import Spikes, check_same_run, locked, stop_signals
from monoformer.train.metrics import Metrics, memory_peaks, progress_bar
from monoformer.train.notices import share_found, tell_skipped, write_down_bad
from monoformer.train.optim import rate_factor, set_rates
from monoformer.train.parallel import ALONE, Ranks, clip
from monoformer.train.tracking import Tracking

T = TypeVar("T")

Sample = Callable[[int, dict[str, Tensor]], Path | None]
"""sample(step, averaged weights): draws whatever somebody wants to see while the run goes on; the picture's file."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Numbers = dict[str, float]

Scores = Callable[[int, dict[str, Tensor]], Numbers]
"""scores(step, averaged weights): how well the model does what it is for."""


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
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.train, self.folder, self.state = config, config.train, config.path, state
        self.describe, self.sample, self.scores, self.curves = describe, sample, scores, curves
        self.ranks = ranks
        self.metrics = Metrics(self.folder / "metrics.jsonl", breakdown=breakdown)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep=self.train.keep, ranks=ranks)
        self.spikes = Spikes(self.train.spike_factor)
        self.device = next(state.model.parameters()).device
        self.step = 0
        self.bad_steps = 0
        self.ended_by = 0
        """The signal that ended the run, on whichever process; 0: none did."""
        self._signal = 0
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
        norm = clip(self.state.model, limit)
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
        loader: Loader[T],
        train_step: Callable[[list[T]], Numbers],
        count: Callable[[list[T]], tuple[Numbers, Numbers]],
        *,
        passes: int = 1,
    ) -> bool:
        """Train to the last step, resuming what the folder holds. False: stopped early, saved, ready to go on.

        `count` says of what a step read which numbers are averaged and which are added up to rates a second.
        """
        with locked(self.folder) if self.ranks.first else nullcontext(), left_to_live():
            try:
                self._open_folder(loader)
                return self._run(loader, train_step, count, passes)
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                last = [path.name for path in checkpoints(self.checkpoints.folder)[-1:]]
                raise ValueError(
                    f"the disk that holds {self.folder} is full ({error}); make room, and the same command goes on "
                    f"from {last[0] if last else 'the start'}"
                ) from error

    def _run(
        self,
        loader: Loader[T],
        train_step: Callable[[list[T]], Numbers],
        count: Callable[[list[T]], tuple[Numbers, Numbers]],
        passes: int,
    ) -> bool:
        self.state.model.train()
        with closing(self.metrics), stop_signals(self._note_signal), progress_bar(shown=self.ranks.first) as bar:
            if self.step < self.train.steps and self.ranks.first:
                self._open_tracking(bar)
            task = bar.add_task(self.config.name, total=self.train.steps, completed=self.step, numbers="")
            while self.step < self.train.steps and not self._stopping:
                started, place, bad = time.perf_counter(), loader.state_dict(), self.bad_steps
                read = self._read(loader, passes)
                if not read:  # the data is to blame: what was learned is kept
                    loader.load_state_dict(place)
                    break
                waited = time.perf_counter() - started
                losses = train_step(read)
                self._heed_signals()
                if self.bad_steps > bad:
                    self._write_down_bad(place, losses, bar)
                else:
                    seconds = time.perf_counter() - started
                    means, totals = count(read)
                    spiked = self._find_spikes(losses, bar)
                    means = {**losses, **means, "spikes": spiked, "data_wait": waited / seconds, "seconds": seconds}
                    self.metrics.add(means, totals=totals)
                self._write_down(loader, bar, task)
        loader.close()
        if self._saved != self.step:
            self.save(loader)
        self.checkpoints.wait()
        if self._failure:
            raise self._failure
        return not self._stopping

    def stop(self) -> None:
        """End the run after the step in progress; every process is to call it, or none."""
        self._stopping = True

    def _read(self, loader: Loader[T], passes: int) -> list[T]:
        """What a step reads; nothing where any process failed, `_failure` says why.

        Raises ValueError when processes are at different documents: they do not read the same data.
        """
        read: list[T] = []
        try:
            read = [next(loader) for _ in range(passes)]
        except ValueError as error:
            self._failure = error
        place = loader.state_dict()
        told = bool(read), place["document"], place["row"], loader.skipped.total, len(loader.found)
        places = self.ranks.gather(told)
        if not all(own[0] for own in places):
            self._failure = self._failure or ValueError("another process could not read its data; it says why")
            return []
        if any(own[:4] != places[0][:4] for own in places):
            raise ValueError(f"processes read different data: (read, document, row, skipped) is {places} by rank")
        if any(own[4] for own in places):
            try:
                loader.note(share_found(loader.found, self.ranks))
            except ValueError as error:
                self._failure = error
                return []
        return read

    def _note_signal(self, number: int) -> None:
        self._signal = number

    def _heed_signals(self) -> None:
        """Stop where any process was told to."""
        self.ended_by = int(max(number for (number,) in self.ranks.gather([self._signal])))
        self._stopping = self._stopping or self.ended_by > 0

    def _find_spikes(self, losses: Numbers, bar: Progress) -> float:
        """How many losses spike; each is said."""
        found = self.spikes.find({name: value for name, value in losses.items() if name.endswith("_loss")})
        for name in found if self.ranks.first else ():
            mean = self.spikes.means[name]
            bar.console.print(f"step {self.step}: {name} {losses[name]:.4g} is a spike, its mean is {mean:.4g}")
        return float(len(found))

    def save(self, loader: Loader[T]) -> None:
        """Begin to write a checkpoint."""
        self.metrics.collect(self.ranks)
        progress = {
            "loader": loader.state_dict(),
            "config": to_json(self.config),
            "metrics": self.metrics.state_dict(),
            "bad_steps": self.bad_steps,
            "spikes": self.spikes.state_dict(),
        }
        self._saved = self.step
        self.checkpoints.save(self.state, step=self.step, progress=progress)

    def _write_down(self, loader: Loader[T], bar: Progress, task: TaskID) -> None:
        """Metrics, samples and checkpoints where their time has come."""
        last, first = self.step == self.train.steps or self._stopping, self.ranks.first
        logged = self.step % self.train.log_every == 0 or last
        if logged:
            self.metrics.collect(self.ranks)
        if first and logged and not self.metrics.empty:
            counts = {"skipped": loader.skipped.total, "bad_steps": self.bad_steps, **memory_peaks(self.device)}
            line = self.metrics.write(self.step, rate_factor=rate_factor(self.step - 1, self.train), **counts)
            bar.update(task, numbers=self.describe(line))
            tell_skipped(loader.skipped, self.folder, self._told, bar.console)
        bar.update(task, completed=self.step)
        looked_at = last and not self.ended_by and not self._failure  # who sends a signal may not wait for long
        scored = self._is_time(self.train.evaluate_every, last=looked_at)
        drawn = self._is_time(self.train.sample_every, last=looked_at)
        weights = self.ranks.whole(self.state.averaged()) if scored or drawn else {}
        if first and self.scores and scored:
            self.metrics.append({"step": self.step, "scores": self.scores(self.step, weights)})
        if self.step % self.train.checkpoint_every == 0 or last:
            self.save(loader)
            if first:
                draw_curves(self.metrics.path, self.folder / "curves.png", shown=self.curves)
        if first and self.sample and drawn:
            picture = self.sample(self.step, weights)
            if picture and self.metrics.tracking:
                self.metrics.tracking.show(self.step, picture)

    def _is_time(self, every: int, *, last: bool) -> bool:
        return every > 0 and (self.step % every == 0 or last)

    def _write_down_bad(self, place: dict[str, Any], losses: Numbers, bar: Progress) -> None:
        """Say where a step's documents are; stop the run, saved, when there were too many such steps."""
        self.metrics.drop()
        folder = self.folder / "bad-steps"
        if self.ranks.first:
            write_down_bad(folder, self.step, losses, place, bar.console)
        if self.bad_steps >= self.train.bad_steps:
            self._failure = ValueError(
                f"{self.bad_steps} steps had no finite gradient; the run is saved at step {self.step}, its weights "
                f"finite. Lower the learning rate, try --train.precision fp32, or look at the documents in "
                f"{folder}; --train.bad-steps {2 * self.train.bad_steps} lets it go on"
            )
            self.stop()

    def _open_tracking(self, bar: Progress) -> None:
        """Begin to tell TensorBoard and others; says once what is missing."""
        self.metrics.tracking = Tracking(self.config, step=self.step)
        if self.metrics.tracking.note:
            bar.console.print(self.metrics.tracking.note, style="dim", markup=False)

    def _open_folder(self, loader: Loader[T]) -> None:
        """Resume from the newest checkpoint, or begin; refuses a folder that holds another run."""
        found = checkpoints(self.folder / "checkpoints")
        newest = self.ranks.gather([float(found[-1].name.removeprefix("step-")) if found else -1.0])
        if any(own != newest[0] for own in newest):
            raise ValueError(
                f"processes find different checkpoints in {self.folder} (steps {newest}); "
                f"put the run's folder where all of them see it"
            )
        if found:
            progress = read_progress(found[-1])
            before = from_json(type(self.config), progress["config"], where=str(found[-1]))  # fields since: defaults
            check_same_run(to_json(before), to_json(self.config), self.folder)
            load_checkpoint(found[-1], self.state, progress, ranks=self.ranks)
            self.step = self._saved = int(progress["step"])
            self.bad_steps = progress.get("bad_steps", 0)
            if "spikes" in progress:
                self.spikes.load_state_dict(progress["spikes"])
            if self.ranks.first:
                self.metrics.load_state_dict(progress["metrics"])
            loader.load_state_dict(progress["loader"])
        if not self.ranks.first:
            return
        self.checkpoints.tidy()
        if found:
            self.metrics.forget_after(self.step)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.metrics.path.unlink(missing_ok=True)
            (self.folder / "skipped.json").unlink(missing_ok=True)
        save_config(self.config, self.folder / "config.json")
