"""A study as a list of jobs, its results as JSON lines, and the table that they make.

Knows nothing of models or of how a run is done. Invariant: a job's digest and folder depend on its whole configuration,
that of the jobs it starts from included, and not on where the study lies; so a changed preset or option is another job,
and what is finished is never done again.
"""

import hashlib
import json
import math
import re
import shlex
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from monoformer.config.evaluate import ScoreConfig
from monoformer.config.run import RunConfig, to_json
from monoformer.config.spelling import hint
from monoformer.config.sweep import SweepConfig, SweepRun

ReadConfig: TypeAlias = Callable[[list[str]], RunConfig]
"""The configuration that a command line of `monoformer train` names."""

Record: TypeAlias = dict[str, Any]
"""One line of the results."""


LOSSES = ("text_loss", "image_loss")
"""What a run's metrics and results name its losses; a network that only draws has one."""

PEAKS = {"host_peak_gib": "GiB at most", "device_peak_gib": "GiB at most on the device"}
"""Peaks of memory in a run's metrics and results, and what the table calls them."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one seed."""

    run: SweepRun
    seed: int
    round: int
    """When it is done: first all variants of their first seed, so that a study cut short still compares."""
    asked: tuple[str, ...]
    """Preset and options as the study's file has them, @NAME still in its place."""
    arguments: tuple[str, ...]
    """Preset and options, as given to `monoformer train`; its own name and folder left out."""
    config: RunConfig
    scores: tuple[ScoreConfig, ...]
    needs: tuple["Job", ...]
    """The jobs that it starts from."""
    digest: str
    """Of the configuration and the scores: whether a result is this job's."""

    @property
    def name(self) -> str:
        """Variant and seed."""
        return f"{self.run.name}-seed{self.seed}"

    @property
    def is_trained(self) -> bool:
        """Whether its model is there."""
        return (self.config.model_path / "config.json").is_file()


def plan(sweep: SweepConfig, folder: Path, *, read: ReadConfig) -> list[Job]:
    """All jobs: seed by seed, variants in the order of the file. Raises ValueError for one whose options are wrong."""
    jobs: list[Job] = []
    for run in sweep.runs:
        for seed in sweep.seeds_of(run):
            jobs.append(_job(sweep, run, seed, folder, read=read, earlier=jobs))
    return sorted(jobs, key=lambda job: job.round)


def _job(
    sweep: SweepConfig, run: SweepRun, seed: int, folder: Path, *, read: ReadConfig, earlier: Sequence[Job]
) -> Job:
    needs: list[Job] = []

    def place(match: re.Match[str]) -> str:
        needs.append(_find(match["name"], seed, earlier, asking=run.name))
        return f"{match['option'] or ''}{needs[-1].config.model_path}"

    asked = [*shlex.split(sweep.overrides), *shlex.split(run.overrides), f"--seed={seed}"]
    if own := [word for word in asked[:-1] if re.match(r"--(name|folder|seed)(=|$)", word)]:
        raise ValueError(f"run {run.name!r} overrides {own[0]}, which the study decides; give seeds = [...] and a name")
    asked.insert(0, run.preset or sweep.preset)
    arguments = tuple(re.sub(r"^(?P<option>--[^=]+=)?@(?P<name>.+)$", place, word) for word in asked)
    config = read(list(arguments))
    scores = sweep.scores_of(run)
    trained = digest([to_json(replace(config, name="", folder=""))], folder)
    name = f"{run.name}-seed{seed}"
    return Job(
        run=run,
        seed=seed,
        round=max([sweep.seeds_of(run).index(seed), *(job.round for job in needs)]),
        asked=tuple(asked),
        arguments=arguments,
        config=replace(config, name=name, folder=str(folder / f"{name}-{trained}")),
        scores=scores,
        needs=tuple(needs),
        digest=digest([trained, [to_json(score) for score in scores]], folder),
    )


def _find(name: str, seed: int, earlier: Sequence[Job], *, asking: str) -> Job:
    """The job of the variant @name that a job of this seed starts from."""
    found = [job for job in earlier if job.run.name == name]
    if not found:
        say = hint(name, [job.run.name for job in earlier], otherwise="name a run that stands above it")
        raise ValueError(f"run {asking!r} refers to @{name}, but no run above it has that name; {say}")
    for job in found:
        if job.seed == seed or len(found) == 1:
            return job
    seeds = ", ".join(str(job.seed) for job in found)
    raise ValueError(f"run {asking!r} has seed {seed}, but @{name} has only {seeds}; give both the same")


def digest(parts: Sequence[Any], folder: Path) -> str:
    """Ten hexadecimal digits of JSON data, in which paths are taken relative to `folder`."""
    within = json.dumps(str(folder / "x"))[1:-2]
    text = json.dumps(parts, sort_keys=True).replace(within, "")
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def read_results(path: Path) -> list[Record]:
    """The lines of a results file; one that was cut off while it was written is no result."""
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def append_result(path: Path, record: Record) -> None:
    """Add one line."""
    torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(record) + "\n")


def latest(jobs: Iterable[Job], records: Iterable[Record]) -> dict[str, Record]:
    """The last record of each job that has one, by digest."""
    wanted = {job.digest for job in jobs}
    return {record["digest"]: record for record in records if record.get("digest") in wanted}


def published(jobs: Iterable[Job], records: Iterable[Record]) -> list[Record]:
    """Results that were published with a study, as those of the jobs that ask for the same.

    What was asked counts, not the whole configuration: a setting that came later makes no published result another's.
    """
    digests = {(job.run.name, job.asked): job.digest for job in jobs}
    found = [(digests.get((record.get("run", ""), tuple(record.get("asked", ())))), record) for record in records]
    return [record | {"digest": digest} for digest, record in found if digest]


def due(jobs: Sequence[Job], records: Iterable[Record]) -> list[Job]:
    """The jobs without a result, and those they start from whose model is not there (any more), in order."""
    done = latest(jobs, records)
    wanted = {job.digest: job for job in jobs if "error" in done.get(job.digest, {"error": "not begun"})}
    for job in reversed(jobs):
        if job.digest in wanted:
            wanted |= {needed.digest: needed for needed in job.needs if not needed.is_trained}
    return [job for job in jobs if job.digest in wanted]


def totals(lines: Sequence[Mapping[str, float]], *, tokens: int) -> dict[str, float]:
    """What a run's metrics add up to: steps, documents, tokens, seconds; its losses over the last tenth of the steps;
    its peaks of memory, where the metrics have them.

    `tokens` is the size of a step, padding included.
    """
    steps, documents, seen, seconds = 0, 0.0, 0.0, 0.0
    lines = [line for line in lines if "scores" not in line]  # an evaluation's line stands beside the step's own
    losses: dict[str, list[tuple[int, float]]] = {name: [] for name in LOSSES if name in lines[0]}
    last = int(lines[-1]["step"])
    for line in lines:
        count, steps = int(line["step"]) - steps, int(line["step"])
        documents += count * line["documents"]
        seen += count * tokens * (1 - line["padding"])
        seconds += count * line["seconds"]
        for name, values in losses.items():
            if steps > 0.9 * last:
                values.append((count, line[name]))
    means = {name: sum(n * value for n, value in values) / sum(n for n, _ in values) for name, values in losses.items()}
    peaks = {name: max(line[name] for line in lines) for name in PEAKS if all(name in line for line in lines)}
    counts = {"steps": steps, "documents": round(documents), "tokens": round(seen), "seconds": round(seconds, 3)}
    return {**counts, **means, **peaks}


def write_table(sweep: SweepConfig, jobs: Sequence[Job], records: Iterable[Record]) -> str:
    """Markdown: a row a variant, mean and standard deviation over its seeds; then slopes, and what failed."""
    found = latest(jobs, records)
    finished = {name: record for name, record in found.items() if "error" not in record}
    rows = {
        run.name: [finished[job.digest] for job in jobs if job.run is run and job.digest in finished]
        for run in sweep.shown
    }
    columns = list(dict.fromkeys(name for records in rows.values() for record in records for name in figures(record)))
    lines = [f"**{sweep.title}**", "", " | ".join(["| variant", "seeds", *columns]) + " |"]
    lines.append("|---" * (2 + len(columns)) + "|")
    for run in sweep.shown:
        done = [figures(record) for record in rows[run.name]]
        cells = [_spread([own[name] for own in done if name in own]) for name in columns]
        lines.append(" | ".join([f"| {run.name}", f"{len(done)} of {len(sweep.seeds_of(run))}", *cells]) + " |")
    slopes = [f"{name}: {_slope(name, rows)}" for name in sweep.slopes]
    failed = [
        f"{job.name} failed: {found[job.digest]['error']}" for job in jobs if "error" in found.get(job.digest, {})
    ]
    return "\n".join([*lines, *([""] if slopes else []), *slopes, *([""] if failed else []), *failed])


def figures(record: Record) -> dict[str, float]:
    """What the table shows of a finished run: what it took and what came of it."""
    memory = {"MB of weights": record["weight_bytes"] / 1e6} if "weight_bytes" in record else {}  # older ones have none
    memory |= {said: record[name] for name, said in PEAKS.items() if name in record}
    return {
        "M parameters": record["parameters"] / 1e6,
        **memory,
        "M tokens": record["tokens"] / 1e6,
        "minutes": record["seconds"] / 60,
        **outcomes(record),
    }


def outcomes(record: Record) -> dict[str, float]:
    """Losses and scores of a finished run; a loss of 0 is one of nothing."""
    return {**{name: record[name] for name in LOSSES if record.get(name)}, **record["scores"]}


def compute(record: Record) -> float:
    """Operations of the training: 6 a parameter and token."""
    return 6.0 * float(record["parameters"]) * float(record["tokens"])


def _slope(name: str, rows: Mapping[str, Sequence[Record]]) -> str:
    """Slope of log(figure) against log(compute) over the variants, fitted for each seed alone."""
    known = {figure for records in rows.values() for record in records for figure in figures(record)}
    if known and name not in known:
        return f"no figure of that name yet; there are {', '.join(sorted(known))}"
    points: dict[int, list[tuple[float, float]]] = {}
    for records in rows.values():
        for record in records:
            value = figures(record).get(name, 0.0)
            if value > 0:
                points.setdefault(record["seed"], []).append((math.log(compute(record)), math.log(value)))
    fits = [
        statistics.linear_regression(*zip(*own, strict=True)).slope
        for own in points.values()
        if len({x for x, _ in own}) > 1
    ]
    if not fits:
        return "no slope yet (it needs two variants of one seed, of different compute, with figures above 0)"
    return f"slope of its logarithm against that of compute {_spread(fits)} (seeds: {len(fits)})"


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in words; one value has no spread."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    digits = 3 if abs(mean) < 10 else 1
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def commit() -> str:
    """The commit of this code, `-dirty` where files were changed; empty outside git."""
    here = Path(__file__).resolve()
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True)
        said = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.stdout.decode().strip()
