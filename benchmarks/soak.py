"""A run that is killed again and again ends as if nothing had happened: python benchmarks/soak.py [--steps 2000].

Two runs of a tiny network under torchrun, from the same seed. One is left alone. The other is killed with -9 at random
moments, start-up included, at a random process each time (the launcher or a rank; what is left of the run is then
killed as well, as when a machine fails), and begun again by the same command. At the end the weights, averages and
optimiser states of both must agree to the last bit, and so must the documents of every step; together they are the
stream from its start, each document once. Prints a table and one line of JSON.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from monoformer.autoencoder import Pixels
from monoformer.batch import Batch
from monoformer.config.data import SequenceConfig
from monoformer.config.model import ModelConfig
from monoformer.config.parallel import ParallelConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import AdamWConfig, TrainConfig
from monoformer.data.loader import Loader
from monoformer.data.source import Indexed
from monoformer.diffusion.objectives import build_objective
from monoformer.document import Document, Image, Text
from monoformer.randomness import generator
from monoformer.tokenizer import Tokenizer
from monoformer.train.build import build_loader
from monoformer.train.checkpoint import checkpoints
from monoformer.train.parallel import processes
from monoformer.train.start import fill_parts, new_start
from monoformer.train.trainer import Parts, Trainer

DIGITS = "0123456789"
SIZE = 8
WINDOW = 12


def document(number: int) -> Document:
    """Its own number in words of one digit, and for two of three documents a picture."""
    text = Text(" ".join(str(number)))
    if number % 3 == 0:
        return Document((text,))
    pixels = torch.randint(256, (3, SIZE, SIZE), generator=generator(number, "soak"), dtype=torch.uint8)
    return Document((text, Image(pixels=pixels, target=True)))


class Noted:
    """A loader that writes down the documents of every batch before it is trained on, a line each."""

    def __init__(self, loader: Loader[Batch], tokenizer: Tokenizer, path: Path) -> None:
        self.loader, self.tokenizer, self.path = loader, tokenizer, path
        self.trainer: Trainer | None = None

    def __next__(self) -> Batch:
        batch = next(self.loader)
        numbers = [
            int("".join(c for c in self.tokenizer.decode(row[own == place].tolist()) if c in DIGITS))
            for row, own in zip(batch.ids, batch.document, strict=True)
            for place in range(int(own.max()) + 1)
        ]
        assert self.trainer is not None
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([self.trainer.loop.step, numbers]) + "\n")
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def train(folder: Path, steps: int, strategy: Any) -> None:
    """One process of a run, under torchrun."""
    tokenizer = Tokenizer.train([" ".join(DIGITS)] * 4, vocabulary=300)
    model = ModelConfig(
        width=32, layers=2, heads=2, kv_heads=2, mlp_width=48, context=64, patch=4, image_sizes=((SIZE, SIZE),),
        vocabulary=tokenizer.size,
    )  # fmt: skip
    settings = TrainConfig(
        steps=steps, rows=4, warmup=10, optimizer=AdamWConfig(rate=1e-3), precision="fp32", device="cpu", log_every=10,
        checkpoint_every=10, parallel=ParallelConfig(strategy=strategy),
    )  # fmt: skip
    sequence = SequenceConfig(row=64, window=WINDOW, drop_text=0.0, drop_context=0.0)
    config = RunConfig(folder=str(folder), model=model, train=settings, sequence=sequence)
    device = torch.device("cpu")
    with processes(device) as ranks:
        folder.mkdir(parents=True, exist_ok=True)
        loader = build_loader(config, Indexed(document), tokenizer, ranks=ranks)
        noted: Any = Noted(loader, tokenizer, folder / f"documents-{ranks.rank}.jsonl")
        network = fill_parts(new_start(config, tokenizer), settings.parallel, ranks, device=device, bf16=False)
        objective, autoencoder = build_objective(config.diffusion), Pixels()
        parts = Parts(
            config=config, model=network, objective=objective, autoencoder=autoencoder, loader=noted, device=device,
            ranks=ranks,
        )  # fmt: skip
        noted.trainer = Trainer(parts)
        noted.trainer.run()


@dataclass(frozen=True)
class Run:
    """How a run is begun, and where."""

    folder: Path
    options: argparse.Namespace

    def start(self) -> subprocess.Popen[bytes]:
        """The launcher, in the background."""
        own = ["--worker", str(self.folder), "--steps", str(self.options.steps), "--strategy", self.options.strategy]
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.options.processes), __file__]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", *launch, *own], stdout=log, stderr=log, env=environment)

    def step(self) -> int:
        """The step that the first process is at."""
        return max(documents(self.folder / "documents-0.jsonl"), default=0)

    def finish(self) -> None:
        """To the end."""
        code = self.start().wait()
        assert code == 0, f"exit code {code}: see {self.folder}.log"


def family(pid: int) -> list[int]:
    """Processes that a process started, and theirs."""
    try:
        own = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []
    return own + [p for child in own for p in family(child)]


def kill(launcher: subprocess.Popen[bytes], random: random.Random) -> str:
    """Kill -9 one process of a run at random, then what is left of it; which one it was."""
    members = [launcher.pid, *family(launcher.pid)]
    victim = random.choice(members)
    os.kill(victim, signal.SIGKILL)
    if victim != launcher.pid and random.random() < 0.5:  # the launcher may notice by itself
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(timeout=60)
    for pid in dict.fromkeys([*members, *family(launcher.pid)]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    launcher.wait()
    while any(Path(f"/proc/{pid}").exists() and not is_dead(pid) for pid in members):
        time.sleep(0.01)
    return "launcher" if victim == launcher.pid else f"process {members.index(victim)}"


def is_dead(pid: int) -> bool:
    """Whether a process has ended, though nobody asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def disturb(run: Run, random: random.Random) -> list[str]:
    """The run killed again and again, then to its end; what was killed when."""
    kills, steps = run.options.kills, run.options.steps
    early = max(1, kills // 5)
    moments = [0] * early + sorted(random.randrange(1, steps) for _ in range(kills - early))
    killed = []
    for moment in moments:
        launcher = run.start()
        while run.step() < moment and launcher.poll() is None:
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.5 if moment else 8.0))
        assert launcher.poll() is None, f"the run ended by itself: see {run.folder}.log"
        before = run.step()
        killed.append(f"{kill(launcher, random)} at step {before}")
        print(killed[-1], flush=True)
    run.finish()
    return killed


def documents(path: Path) -> dict[int, list[int]]:
    """By step, the documents that its last attempt read."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return dict(json.loads(line) for line in lines if line.endswith("\n"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint of a run."""
    path = checkpoints(folder / "checkpoints")[-1]
    described = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    found = {
        name: torch.empty(kind.size, dtype=kind.properties.dtype)
        for name, kind in described.items()
        if isinstance(kind, TensorStorageMetadata)
    }
    dcp.load(found, checkpoint_id=path, no_dist=True)
    return found


def compare(straight: Path, broken: Path, processes: int) -> dict[str, int]:
    """Numbers of tensors and documents, and of those that differ, are missing or were trained on twice."""
    first, second = tensors(straight), tensors(broken)
    assert first.keys() == second.keys()
    read = [
        [documents(folder / f"documents-{rank}.jsonl") for rank in range(processes)] for folder in (straight, broken)
    ]
    seen = Counter(number for steps in read[1] for numbers in steps.values() for number in numbers)
    whole = max(seen) // WINDOW * WINDOW  # the last window need not have been trained on to its end
    return {
        "tensors": len(first),
        "tensors_that_differ": sum(not torch.equal(value, second[name]) for name, value in first.items()),
        "documents": len(seen),
        "documents_twice": sum(times > 1 for times in seen.values()),
        "documents_missing": len(set(range(whole)) - seen.keys()),
        "steps_with_other_documents": sum(
            one.get(step) != other.get(step)
            for one, other in zip(*read, strict=True)
            for step in one.keys() | other.keys()
        ),
    }


def main() -> int:
    """0 where the disturbed run is the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="fsdp")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the processes that are killed")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        train(options.worker, options.steps, options.strategy)
        return 0
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    started = time.time()
    straight, broken = Run(options.out / "straight", options), Run(options.out / "broken", options)
    killed = disturb(broken, random.Random(options.seed))
    straight.finish()
    found = compare(straight.folder, broken.folder, options.processes)
    passed = not any(found[name] for name in found if name not in ("tensors", "documents"))
    for name, value in found.items():
        print(f"{name.replace('_', ' '):28} {value}")
    told = {"benchmark": "soak", "passed": passed, "steps": options.steps, "processes": options.processes}
    told |= {"strategy": options.strategy, "kills": killed, **found, "minutes": round((time.time() - started) / 60, 1)}
    print(json.dumps(told))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
