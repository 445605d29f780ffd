"""What keeps a run from going wrong unseen: one run at a time in a folder, the same configuration when it is resumed,
signals that ask it to stop, losses that jump.

Knows nothing of models.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

MAY_CHANGE = (
    *(
        "name",
        "folder",
        "generate",
        "train.steps",
        "train.device",
        "train.parallel",
        "train.pass_rows",
        "train.readers",
    ),
    *(
        "train.log_every",
        "train.tensorboard",
        "train.wandb",
        "train.checkpoint_every",
        "train.keep",
        "train.sample_every",
    ),
    *("train.evaluate_every", "train.evaluate_count", "train.bad_steps", "train.skip_limit", "train.spike_factor"),
)
"""Fields that may differ when a run is resumed; everything else would make it another run. How processes and passes
share a step changes the last bits of its sums alone."""


PLACES = ("root", "files", "images", "start", "class_names", "autoencoder.path", "tokenizer.path", "vision.path")
"""Fields that may change where a folder or files of the same names have moved. Not a data set's `path`: on the hub two
owners' sets of one name are two."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder for this run alone, where files can be locked; the system lets go of it however the run ends.

    Raises ValueError when another run is at work in it, such as processes whose launcher was killed.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run is at work in {folder}; wait for it, or end its processes, or give --name NEW"
            ) from None
        yield


def check_same_run(saved: dict[str, Any], given: dict[str, Any], folder: Path) -> None:
    """Refuse to go on in a folder whose run had other settings than those that may change."""
    before, now = fields_of(saved), fields_of(given)
    changed = [
        name
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
        and not any(name == m or name.startswith(f"{m}.") for m in MAY_CHANGE)
        and not (
            (name in PLACES or name.rpartition(".")[2] in PLACES) and _ends(before.get(name)) == _ends(now.get(name))
        )
    ]
    if changed:
        first = changed[0]
        raise ValueError(
            f"{folder} holds another run: {first} was {before.get(first)!r} and is now {now.get(first)!r}"
            f"{f' ({len(changed)} fields differ)' if len(changed) > 1 else ''}; "
            f"give {'--folder' if now.get('folder') else '--name'} NEW for a new run, or the old settings to go on"
        )


def fields_of(data: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a configuration as JSON holds it, by their names as on the command line with underscores."""
    if isinstance(data, list) and data and all(isinstance(one, dict) for one in data):
        data = {str(place): one for place, one in enumerate(data)}  # sources are numbered as on the command line
    if isinstance(data, dict):
        return {
            k: v
            for key, value in data.items()
            for k, v in fields_of(value, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: data}


def _ends(paths: Any) -> list[str]:
    """The names that paths end in."""
    return [Path(str(path)).name for path in (paths if isinstance(paths, list) else [paths])]


@contextmanager
def stop_signals(note: Callable[[int], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM are noted and end the run after the step in progress; a second one ends it at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        note(number)
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


class Spikes:
    """Losses that jump above their running mean, by name."""

    SPAN = 100
    """Steps that the running mean looks back over; nothing is flagged in as many first steps."""

    def __init__(self, factor: float) -> None:
        """`factor`: how many times its running mean a loss must be to be flagged; 0: never."""
        self.factor = factor
        self.steps = 0
        self.means: dict[str, float] = {}

    def find(self, losses: dict[str, float]) -> list[str]:
        """Names of the losses of one step that spike; the mean then takes the step in, a spike as its threshold."""
        found = []
        self.steps += 1
        for name, value in losses.items():
            mean = self.means.get(name, value)
            if self.factor and self.steps > self.SPAN and value > self.factor * mean:
                found.append(name)
                value = self.factor * mean
            self.means[name] = mean + (value - mean) / min(self.steps, self.SPAN)
        return found

    def state_dict(self) -> dict[str, Any]:
        """The running means."""
        return {"steps": self.steps, "means": dict(self.means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the means of a checkpoint."""
        self.steps, self.means = int(state["steps"]), dict(state["means"])
