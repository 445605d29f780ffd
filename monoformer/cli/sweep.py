"""sweep: a study's runs one after the other, scored, with one line of results each and a table."""

import shutil
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console

from monoformer import __version__
from monoformer.cli.options import parse, say_go_on
from monoformer.cli.study import draw_study
from monoformer.cli.training import read_config, run
from monoformer.config.evaluate import ClassScores, ScoreConfig, TaskScores, TextScores
from monoformer.config.sweep import SweepConfig, load_sweep
from monoformer.data.text import text_files
from monoformer.device import choose, forget_host_peak
from monoformer.doctor import describe_device
from monoformer.evaluate.build import build_evaluator
from monoformer.evaluate.tasks import read_tasks
from monoformer.pipeline import Pipeline
from monoformer.sweep import (
    Job,
    Record,
    append_result,
    commit,
    due,
    latest,
    plan,
    published,
    read_results,
    totals,
    write_table,
)
from monoformer.train.build import build_run
from monoformer.train.metrics import read_metrics


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """Do all runs of a study that are not finished yet, and score them."""

    file: Annotated[Path, tyro.conf.Positional]
    """TOML file that lists the runs (monoformer/config/sweep.py says what it holds)."""
    folder: str = ""
    """Where the runs and results.jsonl go; empty: runs/sweeps/NAME OF THE FILE."""
    table: bool = False
    """Only print the table of what is finished, as Markdown, and draw it; the results that lie beside the file
    (NAME.jsonl) count too."""
    missing: bool = False
    """Do only the runs that have no result beside the file either: to go on with a study that others began."""


def sweep(arguments: list[str]) -> None:
    """Do a study's runs one by one and score them: monoformer sweep FILE [--table]; the same command again goes on"""
    options = parse(_Sweep, arguments, command="sweep")
    study = load_sweep(options.file)
    folder = Path(options.folder) if options.folder else Path("runs") / "sweeps" / options.file.stem
    results = folder / "results.jsonl"
    jobs = plan(study, folder, read=read_config)
    others = (
        published(jobs, read_results(options.file.with_suffix(".jsonl"))) if options.table or options.missing else []
    )
    if options.table:
        _show(study, jobs, [*others, *read_results(results)], folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    wanted = due(jobs, [*others, *read_results(results)])
    for score in {id(score): score for job in wanted for score in job.scores}.values():
        _check_files(score)  # before hours of training
    for number, job in enumerate(jobs, start=1):
        where = f"[bold]{job.name}[/bold] ({number} of {len(jobs)})"
        if job not in wanted:
            console.print(f"{where}: finished before")
            continue
        record = _perform(job, where, console)
        if record is None:
            say_go_on(console, ["sweep", *arguments])
            sys.exit(130)
        append_result(results, record)
    _show(study, jobs, [*others, *read_results(results)], folder)
    if any("error" in record for record in latest(jobs, read_results(results)).values()):
        console.print(f"some runs failed; what is said above is also in {results}. The same command tries them again.")
        sys.exit(1)


def _check_files(config: ScoreConfig) -> None:
    """Refuse scores whose files are not here."""
    for part in (config, getattr(config, "text", None), getattr(config, "tasks", None)):
        if isinstance(part, TextScores) and part.data.files:
            text_files(part.data)
        if isinstance(part, TaskScores) and part.folder:
            read_tasks(part.folder, part.tasks, count=1)
        if isinstance(part, ClassScores) and not Path(part.judge).is_file():
            raise ValueError(f"{part.name}: there is no judge {part.judge!r}; name the file of its weights")


def _show(study: SweepConfig, jobs: list[Job], records: list[Record], folder: Path) -> None:
    """The table on the screen, the picture in the folder."""
    print(write_table(study, jobs, records))
    folder.mkdir(parents=True, exist_ok=True)
    draw_study(study, jobs, records, folder / "study.png")


def _perform(job: Job, where: str, console: Console) -> Record | None:
    """Train and score; what came of it. None: stopped by Ctrl-C."""
    record: Record = {
        "digest": job.digest,
        "run": job.run.name,
        "seed": job.seed,
        "asked": list(job.asked),
        "arguments": list(job.arguments),
        "folder": str(job.config.path),
        "commit": commit(),
        "version": __version__,
        "device": f"{describe_device(choose(job.config.train.device))}, {torch.get_num_threads()} threads",
    }
    try:
        if not _train(job, where, console):
            return None
        console.print(f"{where}: scoring")
        record |= _measure(job)
    except KeyboardInterrupt:
        return None
    except Exception as error:  # one run that fails must not stop the others
        record["error"] = f"{type(error).__name__}: {error}"
        console.print(f"{where}: [red]failed[/red]: {record['error']}")
    return record | {"finished": datetime.now(UTC).isoformat(timespec="seconds")}


def _train(job: Job, where: str, console: Console) -> bool:
    """Train to the end, unless the model is there; False when stopped. A finished run's checkpoints are deleted."""
    if job.is_trained:
        return True
    for needed in job.needs:
        if not needed.is_trained:
            raise ValueError(f"it starts from {needed.config.model_path}, but that run has not finished")
    forget_host_peak()  # of the jobs before, in the same process
    built = build_run(job.config)
    console.print(f"{where}: {built.news}")
    if not run(built):
        return False
    shutil.rmtree(job.config.path / "checkpoints")
    return True


def _measure(job: Job) -> Record:
    """What training took, and the scores."""
    train = job.config.train
    lines = read_metrics(job.config.path / "metrics.jsonl")
    pipeline = Pipeline.from_pretrained(job.config.model_path, device=train.device)
    scores: dict[str, float] = {}
    for score in job.scores:
        for name, value in build_evaluator(score, pipeline, data=job.config.data, start=job.config.start).run():
            if name in scores:
                raise ValueError(f"two scores of run {job.run.name!r} give {name!r}; leave one of them out")
            scores[name] = value
    weights = list(pipeline.pretrained.model.parameters())
    return {
        "parameters": sum(weight.numel() for weight in weights),
        "weight_bytes": 4 * sum(weight.numel() for weight in weights),  # as they are trained, in fp32
        **totals(lines, tokens=train.rows * job.config.sequence.row),
        "scores": scores,
    }
