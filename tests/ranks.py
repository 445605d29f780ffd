"""Real processes for tests, by gloo, forked from a server that has imported what they need but computed nothing."""

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from monoformer.train.parallel import joined

TIMEOUT = 300.0
"""Seconds that processes may take together."""


def together(function: Callable[..., None], *arguments: Any, world: int) -> None:
    """function(ranks, *arguments) in `world` processes; an error in one of them ends all and is ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.ranks", "tests.tiny"])
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        processes = [
            context.Process(target=_run, args=(function, arguments, rank, world, store)) for rank in range(world)
        ]
        for process in processes:
            process.start()
        try:
            codes = _wait(processes)
        finally:
            for process in processes:
                process.kill()
                process.join()
        errors = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("error-*"))]
    assert codes == [0] * world, "\n".join([f"exit codes by rank: {codes}", *errors])


def _wait(processes: list[Any]) -> list[int | None]:
    """Exit codes once all have ended, or one has failed, or the time is over."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        codes = [process.exitcode for process in processes]
        if any(codes) or None not in codes:
            time.sleep(1.0 if None in codes else 0.0)  # the others fail soon after, and say what they saw
            return codes
        time.sleep(0.02)
    return [process.exitcode for process in processes]


def _run(function: Callable[..., None], arguments: tuple[Any, ...], rank: int, world: int, store: Path) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=TIMEOUT)
    )
    try:
        function(joined(), *arguments)
    except BaseException:
        (store.parent / f"error-{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}", encoding="utf-8")
        raise
    dist.destroy_process_group()
