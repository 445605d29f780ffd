"""The loop and one readable step.

Knows nothing of sampling: `sample`, called now and then with the averaged weights, is a function that somebody else
passes in. Invariant: a run killed at any moment and started again ends with the same bits (DESIGN 4).
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from monoformer.autoencoder import Autoencoder
from monoformer.batch import Batch
from monoformer.config.run import RunConfig, from_json, save_config, to_json
from monoformer.config.train import TrainConfig
from monoformer.data.loader import Loader
from monoformer.device import has_bf16_units, keep_freed_memory
from monoformer.diffusion.objectives import Objective
from monoformer.model.attention import build_mask
from monoformer.model.monoformer import MonoFormer
from monoformer.train.checkpoint import TrainState, checkpoints, load_checkpoint, read_progress, save_checkpoint
from monoformer.train.loss import pass_losses
from monoformer.train.metrics import Metrics, draw_curves, progress_bar
from monoformer.train.optim import EMA, build_optimizers, rate_factor, set_rates
from monoformer.vision import VisionEncoder

Sample = Callable[[int, dict[str, Tensor]], None]
"""sample(step, averaged weights): draws whatever somebody wants to see while the run goes on."""

MAY_CHANGE = ("name", "folder", "train.steps", "train.log_every", "train.checkpoint_every", "train.keep",
              "train.sample_every", "train.device", "generate")  # fmt: skip
"""Fields that may differ when a run is resumed; everything else would make it another run."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a trainer works with."""

    config: RunConfig
    model: MonoFormer
    objective: Objective
    autoencoder: Autoencoder
    loader: Loader[Any, Batch]
    device: torch.device
    vision: VisionEncoder | None = None


class Trainer:
    """Trains one model on one stream of batches."""

    def __init__(self, parts: Parts, *, sample: Sample | None = None) -> None:
        self.parts, self.config, self.train = parts, parts.config, parts.config.train
        self.model = parts.model
        self.state = TrainState(
            model=self.model, ema=EMA(self.model), optimizers=build_optimizers(self.model, self.train)
        )
        self.folder = parts.config.path
        if parts.device.type == "cpu":
            keep_freed_memory()
        self.bf16 = computes_in_bf16(self.train, parts.device)
        self.metrics = Metrics(self.folder / "metrics.jsonl")
        self.sample = sample
        self.step = 0
        self._stopping = False
        self._saved = 0

    def train_step(self, passes: list[Batch]) -> dict[str, float]:
        """One optimiser step over one or more passes of packed rows; the losses."""
        tokens = max(1, sum(batch.labelled for batch in passes))
        images = max(1, sum(batch.targets for batch in passes))
        text_total, image_total = 0.0, 0.0
        for batch in passes:
            text, image = self.losses(batch.to(self.parts.device))
            text, image = text / tokens, image / images
            (self.train.text_weight * text + self.train.image_weight * image).backward()  # type: ignore[no-untyped-call]
            text_total, image_total = text_total + text.item(), image_total + image.item()
        limit = self.train.clip or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        set_rates(self.state.optimizers, rate_factor(self.step, self.train))
        for optimizer in self.state.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.state.ema.update(self.model)
        self.step += 1
        return {"text_loss": text_total, "image_loss": image_total, "gradient_norm": norm}

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums of the text and image losses of one pass, under autocast where the run asks for it."""
        with torch.autocast(self.parts.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return pass_losses(
                self.model,
                batch,
                build_mask(batch),
                objective=self.parts.objective,
                autoencoder=self.parts.autoencoder,
                vision=self.parts.vision,
                seed=self.config.seed,
            )

    def run(self) -> bool:
        """Train to the last step, resuming what the folder holds. False: stopped early, saved, ready to go on."""
        self._open_folder()
        self.model.train()
        with stop_signals(self._stop), progress_bar() as bar:
            task = bar.add_task(self.config.name, total=self.train.steps, completed=self.step, numbers="")
            while self.step < self.train.steps and not self._stopping:
                started = time.perf_counter()
                passes = [next(self.parts.loader) for _ in range(self._passes())]
                waited = time.perf_counter() - started
                values = self.train_step(passes)
                padding = sum(batch.padding for batch in passes) / len(passes)
                tokens = float(sum(batch.ids.numel() for batch in passes)) * (1 - padding)
                targets = float(sum(batch.targets for batch in passes))
                documents = float(sum(batch.documents for batch in passes))
                seconds = time.perf_counter() - started
                self.metrics.add(
                    {
                        **values,
                        "padding": padding,
                        "documents": documents,
                        "data_wait": waited / seconds,
                        "seconds": seconds,
                    },
                    totals={"tokens": tokens, "images": targets},
                )
                self._write_down(bar, task)
        self.parts.loader.close()
        if self._saved != self.step:
            self.save()
        return not self._stopping

    def _write_down(self, bar: Any, task: Any) -> None:
        """Metrics, samples and checkpoints where their time has come."""
        last = self.step == self.train.steps or self._stopping
        if self.step % self.train.log_every == 0 or last:
            line = self.metrics.write(self.step, rate_factor=rate_factor(self.step - 1, self.train))
            losses = f"text {line['text_loss']:.3f}  image {line['image_loss']:.3f}"
            numbers = f"{losses}  {line['images_per_second']:.0f} images/s"
            bar.update(task, numbers=numbers)
        bar.update(task, completed=self.step)
        if self.step % self.train.checkpoint_every == 0 or last:
            self.save()
            draw_curves(self.metrics.path, self.folder / "curves.png")
        if self.sample and self.train.sample_every and (self.step % self.train.sample_every == 0 or last):
            self.sample(self.step, self.state.ema.weights)

    def save(self) -> Path:
        """Write a checkpoint."""
        progress = {
            "loader": self.parts.loader.state_dict(),
            "config": to_json(self.config),
            "metrics": self.metrics.state_dict(),
        }
        folder = self.folder / "checkpoints"
        self._saved = self.step
        return save_checkpoint(folder, self.state, step=self.step, progress=progress, keep=self.train.keep)

    def _open_folder(self) -> None:
        """Resume from the newest checkpoint, or begin; refuses a folder that holds another run."""
        found = checkpoints(self.folder / "checkpoints")
        if found:
            progress = read_progress(found[-1])
            before = from_json(RunConfig, progress["config"], where=str(found[-1]))  # fields since then: defaults
            check_same_run(to_json(before), to_json(self.config), self.folder)
            load_checkpoint(found[-1], self.state, progress)
            self.step = self._saved = int(progress["step"])
            self.metrics.load_state_dict(progress["metrics"])
            self.parts.loader.load_state_dict(progress["loader"])
            self.metrics.forget_after(self.step)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.metrics.path.unlink(missing_ok=True)
        save_config(self.config, self.folder / "config.json")

    def _passes(self) -> int:
        return self.train.rows // (self.train.pass_rows or self.train.rows)

    def _stop(self) -> None:
        self._stopping = True


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
