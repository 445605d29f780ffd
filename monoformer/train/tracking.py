"""A run's metrics and sample pictures in TensorBoard and in Weights & Biases, both optional.

Knows nothing of training: it is given the lines of `metrics.jsonl`, which come first and hold everything. Invariant: a
package that is absent never stops a run, unless the run names it.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from monoformer.config.autoencoder import AutoencoderRun
from monoformer.config.run import RunConfig, to_json


class Tracking:
    """Where the lines of one run also go; opened anew when the run is resumed."""

    def __init__(self, config: RunConfig | AutoencoderRun, *, step: int) -> None:
        """`step`: steps done so far; what an earlier process told of later ones is hidden.

        Raises ValueError when Weights & Biases is asked for and not installed.
        """
        self.note = ""
        self._board = _open_board(config, step=step) if config.train.tensorboard else None
        self._wandb = _open_wandb(config) if config.train.wandb else None
        if config.train.tensorboard and self._board is None:
            self.note = "no TensorBoard here: pip install 'monoformer[tracking]', or --train.no-tensorboard"

    def write(self, line: dict[str, Any]) -> None:
        """The numbers of one line."""
        step = int(line["step"])
        numbers = dict(flatten({name: value for name, value in line.items() if name != "step"}))
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log({"step": step, **numbers})

    def show(self, step: int, picture: Path) -> None:
        """A grid of samples, an image file."""
        if self._board is not None:
            with PILImage.open(picture) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            self._board.add_image("samples", pixels, step, dataformats="HWC")
            self._board.flush()
        if self._wandb is not None:
            import wandb

            self._wandb.log({"step": step, "samples": wandb.Image(str(picture))})

    def close(self) -> None:
        """End both; what was told is on the disk."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested numbers as `group/name`: both services draw the names of a group side by side."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _open_board(config: RunConfig | AutoencoderRun, *, step: int) -> Any:
    """TensorBoard's writer in the run's folder; None where the package is missing."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(config.path / "tensorboard"), purge_step=step + 1)  # type: ignore[no-untyped-call]
    if not step:
        text = json.dumps(to_json(config), indent=2)
        writer.add_text("configuration", "\n".join(f"    {line}" for line in text.splitlines()))  # type: ignore[no-untyped-call]
    return writer


def _open_wandb(config: RunConfig | AutoencoderRun) -> Any:
    """The run of that project; its id is kept in the run's folder, so that a resumed run is the same one."""
    if find_spec("wandb") is None:
        raise ValueError(
            f"train.wandb = {config.train.wandb!r} needs wandb, which is not installed; "
            f"pip install 'monoformer[tracking]', or leave out --train.wandb"
        )
    import wandb

    kept = config.path / "wandb-id.txt"
    before = kept.read_text(encoding="utf-8").strip() if kept.is_file() else None
    run = wandb.init(
        project=config.train.wandb,
        name=config.name,
        id=before,
        resume="allow" if before else None,
        dir=config.path,
        config=to_json(config),
    )
    kept.write_text(run.id, encoding="utf-8")
    run.define_metric("*", step_metric="step")
    return run
