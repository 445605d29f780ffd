"""encode: the autoencoder once over a run's pictures, and the run that trains on what it made of them."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from monoformer.autoencoder import Autoencoder
from monoformer.cli.options import take, whole_number
from monoformer.cli.training import read_config
from monoformer.config.run import save_config
from monoformer.data.encoding import encode as write_cache
from monoformer.train.caching import cache_jobs, on_caches, shaped
from monoformer.train.metrics import progress_bar

USAGE = """usage: monoformer encode PRESET --out FOLDER [--passes 4] [--documents N] [--processes 1]
                                               [options of train ...]
       monoformer encode --config FILE --out FOLDER ...

Runs the autoencoder once over every source of pictures and writes FOLDER, and in it run.json: the same run, reading it.
Started again after it was stopped, it goes on.

--passes     passes over the data: each takes other captions, flips and directions; no picture is stored twice
--documents  how many documents of a source that has no end
--processes  processes, on a GPU each where there are GPUs"""


def encode(arguments: list[str], *, build: Callable[[torch.device], Autoencoder] | None = None) -> None:
    """Run the autoencoder once over the pictures: monoformer encode PRESET --out FOLDER [options of train]"""
    if not arguments or {"-h", "--help"} & set(arguments[:2]):
        Console().print(USAGE, markup=False, highlight=False, soft_wrap=True)
        sys.exit()
    rest, given = take(arguments, out="", passes="4", documents="0", processes="1")
    if not given["out"]:
        raise ValueError("encode needs a folder to write; give --out FOLDER")
    out, console = Path(given["out"]), Console()
    passes, documents, processes = (whole_number(name, given[name]) for name in ("passes", "documents", "processes"))
    config = shaped(read_config(rest))
    jobs = cache_jobs(config, out, passes=passes, documents=documents, build=build)
    for job in jobs:
        with progress_bar() as bar:
            tasks = {what: bar.add_task(what, total=None, numbers="") for what in ("documents", "pictures")}

            def tell(what: str, done: int, of: int) -> None:
                bar.update(tasks[what], completed=done, total=of)  # noqa: B023 (called within this turn alone)

            record = write_cache(job, processes=processes, tell=tell)
        say = f"{job.folder}: {record.pictures} pictures of {job.encoding.documents} documents"
        console.print(say, markup=False, soft_wrap=True)
    save_config(on_caches(config, out), out / "run.json")
    console.print(f"done:\n  monoformer train --config {out / 'run.json'}", markup=False, soft_wrap=True)
