"""`torchrun -m monoformer train ...` simply works, survives SIGTERM of one process, and ends in a plain model folder;
the soak benchmark at a small size.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monoformer.pretrained import load_pretrained
from monoformer.train.checkpoint import checkpoints
from monoformer.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
TINY = [
    *("--model.width=32", "--model.layers=2", "--model.heads=2", "--model.kv-heads=2", "--model.mlp-width=48"),
    *("--train.steps=8", "--train.rows=4", "--train.warmup=1", "--train.log-every=1", "--train.checkpoint-every=2"),
    *("--sequence.window=8", "--train.sample-every=8", "--train.device=cpu", "--train.precision=fp32"),
]


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_torchrun_trains_and_starts_a_terminated_process_again(strategy: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["-m", "monoformer", "train", "scenes-quick", f"--folder={folder}", *TINY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        launcher = subprocess.Popen(
            [*LAUNCH, *command, f"--train.parallel.strategy={strategy}"],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            while not checkpoints(folder / "checkpoints") and launcher.poll() is None:
                time.sleep(0.01)
            os.kill(children(launcher.pid)[-1], signal.SIGTERM)
            code = launcher.wait(timeout=600)
        finally:
            launcher.kill()
    said = " ".join((tmp_path / "log").read_text(encoding="utf-8").split())  # as the console wrapped it
    assert code == 0, said
    assert said.count("2 processes: new weights") == 1, "one process speaks"
    assert said.count("2 processes: goes on from step") == 1, "in both attempts"
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == list(range(1, 9))
    assert [path.name for path in (folder / "samples").iterdir()] == ["step-00000008.png"]
    model = load_pretrained(folder / "model").model
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_the_soak_at_a_small_size(tmp_path: Path) -> None:
    command = ["benchmarks/soak.py", "--steps=40", "--kills=3", f"--out={tmp_path / 'soak'}"]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["passed"]
    assert len(found["kills"]) == 3
