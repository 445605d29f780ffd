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
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor

from monoformer.train.optim import EMA

_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """What changes while training."""

    model: nn.Module
    ema: EMA
    optimizers: list[torch.optim.Optimizer]

    @cached_property
    def frozen(self) -> Tensor:
        """Sum of the magnitudes of every frozen weight (fp64): by them a run that goes on knows its own base."""
        sums = [p.detach().abs().sum(dtype=torch.float64) for p in self.model.parameters() if not p.requires_grad]
        return torch.stack([own.full_tensor() if isinstance(own, DTensor) else own for own in sums]).cpu()


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
    if "frozen" in tensors and not torch.allclose(tensors["frozen"], state.frozen, rtol=1e-6):
        raise ValueError(
            f"the frozen weights are others than when {path} was saved: the model that the run starts from has "
            f"changed; bring it back, or give --name NEW for a new run"
        )
    state.model.load_state_dict({**state.model.state_dict(), **tensors["model"]})
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
    has_frozen = any(not p.requires_grad for p in state.model.parameters())
    base = {"frozen": state.frozen.clone()} if has_frozen else {}
    return {"model": trained_tensors(state.model), "ema": state.ema.weights, **base, **optimizers}


def trained_tensors(model: nn.Module) -> dict[str, Any]:
    """The state without its frozen weights: they are those of the model that the run starts from."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}
