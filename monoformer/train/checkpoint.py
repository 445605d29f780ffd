"""Training checkpoints: everything a run needs to go on bit for bit, on any number of processes.

A checkpoint is a folder `step-00000100` of distributed-checkpoint files (whose metadata is a pickle: local and
trusted, never loaded by the pipeline or a server) and `state.json`, which has their checksums. State is copied to host
memory at once and written by a thread while the training goes on, beside its place; the folder is renamed when every
process has written its part.
Invariant: a run killed at any moment, or that finds the disk full, leaves only whole checkpoints.
"""

import copy
import json
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor

from monoformer.train.optim import EMA
from monoformer.train.parallel import ALONE, Ranks

_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """What changes while training."""

    model: nn.Module
    ema: EMA
    optimizers: list[torch.optim.Optimizer]

    def averaged(self) -> dict[str, Tensor]:
        """Every weight of the network: averages of those that are trained, the others as they are."""
        return {**self.model.state_dict(), **self.ema.weights}

    @cached_property
    def frozen(self) -> Tensor:
        """Sum of the magnitudes of every frozen weight (fp64): by them a run that goes on knows its own base."""
        frozen = [p.detach() for p in self.model.parameters() if not p.requires_grad]
        sums = [(p.cpu() if p.device.type == "mps" else p).abs().sum(dtype=torch.float64) for p in frozen]
        return torch.stack([own.full_tensor() if isinstance(own, DTensor) else own for own in sums]).cpu()


class Checkpoints:
    """A run's checkpoints, written one at a time; `wait` or the next `save` says how it went."""

    def __init__(self, folder: Path, *, keep: int, ranks: Ranks = ALONE) -> None:
        self.folder, self.keep, self.ranks = folder, keep, ranks
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: tuple[int, Future[str]] | None = None

    def save(self, state: TrainState, *, step: int, progress: dict[str, Any]) -> None:
        """Begin to write `folder/step-N`; afterwards all but the newest `keep` are deleted.

        What `state` holds may change as soon as this returns. Raises ValueError when the one before failed.
        """
        self.wait()
        copied = BlockingAsyncStager().stage(share_of(_tensors(state), self.ranks))
        progress = {"step": step, "ema_updates": state.ema.updates, **copy.deepcopy(progress)}
        self._writing = step, self._thread.submit(self._write, copied, step, progress)

    def wait(self) -> None:
        """Until nothing is being written. Raises ValueError when that failed, on every process alike."""
        if self._writing is None:
            return
        (step, future), self._writing = self._writing, None
        problem = future.result()
        if problem:
            last = [path.name for path in checkpoints(self.folder)[-1:]]
            raise ValueError(
                f"the checkpoint of step {step} could not be written to {self.folder} ({problem}); "
                f"{f'{last[0]} is whole' if last else 'there is none before it'}. Make room, and give the same "
                f"command again: it goes on from there"
            )

    def _write(self, tensors: dict[str, Any], step: int, progress: dict[str, Any]) -> str:
        """In the thread: all parts, then the name. What went wrong on any process, or nothing."""
        path = self.folder / f"step-{step:08d}"
        temporary = path.with_suffix(".incomplete")
        problem, own = "", {}
        try:
            if self.ranks.first:
                shutil.rmtree(temporary, ignore_errors=True)
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is what we mean
            dcp.save(tensors, checkpoint_id=temporary, process_group=self.ranks.files, no_dist=self.ranks.files is None)
            own = {path.name: checksum(path) for path in temporary.glob(f"__{self.ranks.rank}_*")}
        except (Exception, CheckpointException) as error:  # the latter is a BaseException
            problem = _cause(error)
        parts = self.ranks.gather_all(
            (problem, own), group=self.ranks.files
        )  # outside: all of them ask, or none returns
        if self.ranks.first:
            try:
                if not any(why for why, _ in parts):
                    sums = {name: found for _, part in parts for name, found in part.items()}
                    _write_through(temporary / "state.json", json.dumps({**progress, "checksums": sums}, indent=2))
                    self._put_in_place(temporary, path)
            except Exception as error:
                problem = _cause(error)
            shutil.rmtree(temporary, ignore_errors=True)  # nothing where it was put in place
        failed = self.ranks.gather([bool(problem)], group=self.ranks.files)
        return problem or ("another process says why" if any(own for (own,) in failed) else "")

    def _put_in_place(self, temporary: Path, path: Path) -> None:
        if path.exists():  # damaged, or the run would have gone on from it
            _remove(path)
        temporary.rename(path)
        _sync(path.parent)
        for old in checkpoints(self.folder)[: -self.keep]:
            _remove(old)

    def tidy(self) -> None:
        """Delete what killed runs left half written or half deleted."""
        for path in self.folder.glob("step-*.*"):
            shutil.rmtree(path, ignore_errors=True)


def read_progress(path: Path) -> dict[str, Any]:
    """The progress saved in a checkpoint. Raises ValueError when it is damaged."""
    try:
        progress: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    return progress


def load_checkpoint(path: Path, state: TrainState, progress: dict[str, Any], *, ranks: Ranks = ALONE) -> None:
    """Restore in place, from any number of processes to any other; `progress` is what `read_progress` gave.

    Raises ValueError when the checkpoint is damaged.
    """
    check_whole(path, progress, ranks)
    try:
        tensors = _tensors(state)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(tensors, checkpoint_id=path, process_group=ranks.files, no_dist=ranks.files is None)
    except (Exception, CheckpointException) as error:
        raise damaged(path, _cause(error)) from error
    if "frozen" in tensors and not torch.allclose(tensors["frozen"], state.frozen, rtol=1e-6):
        raise ValueError(
            f"the frozen weights are others than when {path} was saved: the model that the run starts from has "
            f"changed; bring it back, or give --name NEW for a new run"
        )
    state.model.load_state_dict({**state.model.state_dict(), **tensors["model"]})
    for number, optimizer in enumerate(state.optimizers):
        set_optimizer_state_dict(state.model, optimizer, tensors[f"optimizer-{number}"])
    state.ema.updates = progress["ema_updates"]


def check_whole(path: Path, progress: dict[str, Any], ranks: Ranks = ALONE) -> None:
    """Raise ValueError, on all processes alike, where a file of a checkpoint is not as it was written."""
    problem = ""
    sums: dict[str, int] = progress.get("checksums", {})  # older checkpoints have none
    try:
        FileSystemReader(path).read_metadata()
        for name in sorted(sums)[ranks.rank :: ranks.world]:
            if checksum(path / name) != sums[name]:
                raise ValueError(f"{name} has other bytes than were written")
    except Exception as error:  # a pickle that was cut raises whatever it likes
        problem = _cause(error)
    if any(own for (own,) in ranks.gather([bool(problem)])):
        raise damaged(path, problem or "another process says why")


def checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def damaged(path: Path, problem: str) -> ValueError:
    """What is wrong with a checkpoint, and what its deletion would mean."""
    before = [own.name for own in checkpoints(path.parent) if own < path]
    then = f"resumes from {before[-1]}" if before else "begins anew, since there is none before it"
    return ValueError(f"checkpoint {path} is damaged ({problem}); delete that folder and the run {then}")


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found)


def last_step(folder: Path) -> int:
    """The step that a run in this folder goes on from; 0 where it begins."""
    found = checkpoints(folder / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else 0


def _tensors(state: TrainState) -> dict[str, Any]:
    optimizers = {
        f"optimizer-{number}": get_optimizer_state_dict(state.model, optimizer)
        for number, optimizer in enumerate(state.optimizers)
    }
    has_frozen = any(not p.requires_grad for p in state.model.parameters())
    base = {"frozen": state.frozen.clone()} if has_frozen else {}
    return {"model": trained_tensors(state.model), "ema": state.ema.weights, **base, **optimizers}


def share_of(state: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """What this process copies and writes: its parts of what is sharded, and an equal share of what all hold.

    `state` is nested by name. Numbers and lists stay everywhere: they cost nothing.
    """
    loads = [0] * ranks.world

    def is_own(value: Any) -> bool:
        if isinstance(value, DTensor) or not isinstance(value, Tensor):
            return True
        writer = loads.index(min(loads))
        loads[writer] += value.nbytes
        return writer == ranks.rank

    def share(held: Mapping[str, Any]) -> dict[str, Any]:
        nested = ((name, share(value) if isinstance(value, Mapping) else value) for name, value in held.items())
        return {name: value for name, value in nested if is_own(value)}

    return share(state)


def trained_tensors(model: nn.Module) -> dict[str, Any]:
    """The state without its frozen weights: they are those of the model that the run starts from."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def _cause(error: BaseException) -> str:
    """The last line of what a process ran into: distributed checkpoints put traces before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _remove(path: Path) -> None:
    """Delete a checkpoint that is never to be seen half deleted."""
    doomed = path.with_suffix(".deleted")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _write_through(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """See that renames in a folder reach the disk, where folders can be opened."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
