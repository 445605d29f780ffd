"""Training checkpoints: everything a run needs to go on bit for bit.

A checkpoint is a folder `step-00000100` of distributed-checkpoint files (whose metadata is a pickle: local and
trusted, never loaded by the pipeline or a server) and `state.json`. It is written beside its place and renamed when
complete, so a killed run leaves only whole ones.
"""

import json
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from monoformer.train.optim import EMA

_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """What changes while training."""

    model: nn.Module
    ema: EMA
    optimizers: list[torch.optim.Optimizer]


def save_checkpoint(folder: Path, state: TrainState, *, step: int, progress: dict[str, Any], keep: int) -> Path:
    """Write `folder/step-N`, then delete all but the newest `keep`."""
    path = folder / f"step-{step:08d}"
    temporary = folder / f"{path.name}.incomplete"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is what we mean
        dcp.save(_tensors(state), checkpoint_id=temporary, no_dist=True)
    saved = {"step": step, "ema_updates": state.ema.updates, **progress}
    (temporary / "state.json").write_text(json.dumps(saved, indent=2), encoding="utf-8")
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def read_progress(path: Path) -> dict[str, Any]:
    """The progress saved in a checkpoint. Raises ValueError when it is damaged."""
    try:
        progress: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged ({error}); delete that folder and the run resumes from the one before"
        ) from error
    return progress


def load_checkpoint(path: Path, state: TrainState, progress: dict[str, Any]) -> None:
    """Restore in place; `progress` is what `read_progress` gave. Raises ValueError when the checkpoint is damaged."""
    try:
        tensors = _tensors(state)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(tensors, checkpoint_id=path, no_dist=True)
    except (Exception, CheckpointException) as error:  # the latter is a BaseException
        cause = str(error).strip().splitlines()
        raise ValueError(
            f"checkpoint {path} is damaged ({cause[0] if cause else type(error).__name__}); "
            f"delete that folder and the run resumes from the one before"
        ) from error
    state.model.load_state_dict(tensors["model"])
    for number, optimizer in enumerate(state.optimizers):
        set_optimizer_state_dict(state.model, optimizer, tensors[f"optimizer-{number}"])
    state.ema.updates = progress["ema_updates"]


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found)


def _tensors(state: TrainState) -> dict[str, Any]:
    optimizers = {
        f"optimizer-{number}": get_optimizer_state_dict(state.model, optimizer)
        for number, optimizer in enumerate(state.optimizers)
    }
    return {"model": state.model.state_dict(), "ema": state.ema.weights, **optimizers}
