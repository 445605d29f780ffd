"""evaluate: every score of a model by one command, with its spread and all that it depends on; resumable."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from monoformer.card import read_card, with_scores
from monoformer.cli.generation import ModelFolder
from monoformer.cli.options import Use, check_folder, parse, say_go_on
from monoformer.cli.origins import describe_origin, trained_on
from monoformer.cli.scoring import fitting_suites, with_given
from monoformer.config.evaluate import (
    CaptionScores,
    ClassScores,
    CompositionScores,
    ForgettingScores,
    ImageScores,
    SceneScores,
    ScoreConfig,
    TaskScores,
    TextScores,
)
from monoformer.config.generate import changed
from monoformer.config.run import RunConfig, load_config, to_json
from monoformer.config.spelling import hint
from monoformer.evaluate.build import BATCH, build_evaluator
from monoformer.evaluate.digests import digest_named
from monoformer.evaluate.evaluator import Evaluator
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.peer import Peer, load_peer
from monoformer.evaluate.report import describe_figure, origins, table, write_report
from monoformer.pipeline import Pipeline
from monoformer.pretrained import find_folder
from monoformer.sweep import Record, append_result, digest, read_results


@dataclass(frozen=True, kw_only=True)
class _Evaluate(Use):
    """Score a model; the same command again goes on where it was, and does nothing twice."""

    model: ModelFolder
    """Model folder or hub name."""
    peer: str = ""
    """Folder of a diffusers text-to-image pipeline (safetensors) that is scored in the model's place, with the model's
    prompts, seeds and picture size: suites scenes (drawing) and images."""
    suite: tuple[str, ...] = ()
    """What is scored: scenes, composition, text, images, classes, captions, tasks, forgetting; empty: those of scenes,
    composition, text and captions that the model's training data has."""
    config: Path | None = None
    """config.json of the run that trained the model; left out: the model's card, else the file beside its folder."""
    out: Path | None = None
    """Where scores.json, scores.md and pictures go; left out: MODEL-evaluation."""
    count: int | None = None
    """Items of every suite."""
    seed: int | None = None
    """Seed of every suite."""
    batch: int = BATCH
    """Items drawn or read at a time."""
    card: bool = False
    """Also write the table into the model folder's card."""
    scenes: SceneScores = field(default_factory=SceneScores)
    """Held-out drawn scenes, by the exact parser."""
    composition: CompositionScores = field(default_factory=CompositionScores)
    """Scenes of what training left out."""
    text: TextScores = field(default_factory=TextScores)
    """Perplexity."""
    images: ImageScores = field(default_factory=ImageScores)
    """FID, Inception Score, precision and recall."""
    classes: ClassScores = field(default_factory=ClassScores)
    """How many drawn pictures a classifier takes for what was asked."""
    captions: CaptionScores = field(default_factory=CaptionScores)
    """CIDEr and retrieval."""
    tasks: TaskScores = field(default_factory=TaskScores)
    """Multiple choice."""
    forgetting: ForgettingScores = field(default_factory=ForgettingScores)
    """Language before and after."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"--batch must be 1 or more, but is {self.batch}")
        if self.sampling.seed is not None:
            raise ValueError("items have seeds of their own; give --seed instead of --sampling.seed")
        if self.peer and (self.card or set(self.sampling.given()) - {"steps", "guidance"}):
            raise ValueError("a peer has no card of ours, and of the sampling settings steps and guidance alone")


SAMPLED = (SceneScores, CompositionScores, ImageScores, ClassScores, CaptionScores)
"""Suites that write or draw."""

SUITES = ("scenes", "composition", "text", "images", "classes", "captions", "tasks", "forgetting")


def evaluate(arguments: list[str]) -> None:
    """Score a model: monoformer evaluate MODEL --suite scenes text images classes captions tasks forgetting"""
    options = parse(_Evaluate, arguments, command="evaluate")
    check_suites(options.suite)
    if options.out:
        check_folder(options.out)
    console = Console()
    pipeline = open_pipeline(options)
    trained = find_training(options, pipeline)
    peer = open_peer(options, pipeline) if options.peer else None
    where = peer.folder if peer else find_folder(options.model)
    folder = options.out or evaluation_folder(options.peer or options.model)
    folder.mkdir(parents=True, exist_ok=True)
    results, origin = folder / "results.jsonl", describe_origin(pipeline, where, arguments, peer=peer)
    work = [
        plan(config, pipeline, trained, folder=folder, origin=origin, batch=options.batch, peer=peer)
        for config in choose_scores(options, trained)
    ]  # all of them first: what is wrong with the last suite is said before hours of the first
    try:
        for suite in work:
            if suite.evaluator is None:
                console.print(f"[bold]{suite.config.name}[/bold]: finished before")
            else:
                append_result(results, perform(suite, suite.evaluator, console) | origin)
                suite.journal.forget()
    except KeyboardInterrupt:
        say_go_on(console, ["evaluate", *arguments])
        sys.exit(130)
    records = list({record["digest"]: record for record in read_results(results)}.values())
    own = [record for record in records if record["weights"] == origin["weights"]]
    print(write_report(folder, own, model=options.peer or options.model))
    if options.card:
        asked = {suite.digest for suite in work}
        write_into_card(where / "README.md", [record for record in records if record["digest"] in asked])


@dataclass(kw_only=True)
class Suite:
    """One suite of one model, ready to be done."""

    config: ScoreConfig
    generate: dict[str, Any]
    """Settings of writing and drawing, where it does any."""
    digest: str
    """Of everything that its figures depend on: other weights, seeds or settings are another suite."""
    journal: Journal
    evaluator: Evaluator | None
    """None: it is finished."""


def plan(
    config: ScoreConfig,
    pipeline: Pipeline,
    trained: RunConfig | None,
    *,
    folder: Path,
    origin: Record,
    batch: int,
    peer: Peer | None = None,
) -> Suite:
    """The suite, with what is known of it in `folder`. Raises ValueError where it does not fit the model."""
    generate = to_json(pipeline.pretrained.generate) if isinstance(config, SAMPLED) else {}
    if peer:
        generate = {"peer": type(peer.network).__name__, "size": list(peer.size), **peer.settings}
    settings = to_json(config)
    code = [origin["commit"], origin["versions"]["monoformer"]]  # a figure of other code is another figure
    depends = [origin["weights"], settings, digest_named(settings), generate, origin["precision"], *code]
    own = digest([*depends, trained_on(config, trained)], folder)
    if any(record["digest"] == own for record in read_results(folder / "results.jsonl")):
        return Suite(config=config, generate=generate, digest=own, journal=Journal(), evaluator=None)
    journal = Journal(folder / "begun" / own)
    evaluator = build_evaluator(
        config,
        pipeline,
        data=trained.data if trained else None,
        start=trained.start if trained else "",
        journal=journal,
        batch=batch,
        samples=folder / f"samples-{own}.npz",
        peer=peer,
    )
    return Suite(config=config, generate=generate, digest=own, journal=journal, evaluator=evaluator)


def perform(suite: Suite, evaluator: Evaluator, console: Console) -> Record:
    """Run it under a progress bar; its figures, and what they were taken with."""
    begun = time.perf_counter()
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(suite.config.name, total=evaluator.total)
        suite.journal.watch = lambda count: bar.advance(task, count)
        figures = [describe_figure(name, value) for name, value in evaluator.run()]
    return {
        "suite": suite.config.name,
        "digest": suite.digest,
        "settings": to_json(suite.config),
        "generate": suite.generate,
        "figures": figures,
        "seconds": round(time.perf_counter() - begun, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def open_pipeline(options: _Evaluate) -> Pipeline:
    """The model with the sampling settings of this command."""
    pipeline = options.open(options.model, slots=max(options.batch, 2))
    settings = {} if options.peer else options.sampling.given()
    generate = changed(pipeline.pretrained.generate, settings)
    pipeline.pretrained = replace(pipeline.pretrained, generate=generate)
    return pipeline


def open_peer(options: _Evaluate, pipeline: Pipeline) -> Peer:
    """What is scored in the model's place; its pictures get the model's size."""
    model, sampling = pipeline.pretrained.model, options.sampling
    size, weight = model.config.image_sizes[0], model.tokens.weight
    return load_peer(
        options.peer, size=size, device=weight.device, dtype=weight.dtype, steps=sampling.steps,
        guidance=sampling.guidance,
    )  # fmt: skip


def evaluation_folder(model: str) -> Path:
    """Beside a model folder, or in runs/ for a model of the hub."""
    path = Path(model)
    return path.with_name(f"{path.name}-evaluation") if path.exists() else Path("runs") / f"{path.name}-evaluation"


def find_training(options: _Evaluate, pipeline: Pipeline) -> RunConfig | None:
    """What the model was trained with: --config, else its card, else the run's folder; None where nothing says it."""
    if options.config:
        return load_config(options.config)
    beside = Path(options.model).parent / "config.json"
    try:
        said = read_card(pipeline.card)
        return said or (load_config(beside) if beside.is_file() else None)
    except ValueError as error:
        raise ValueError(f"{error}; say what the model was trained with: --config FILE") from None


def check_suites(names: Sequence[str]) -> None:
    """Refuse a suite that does not exist, with the nearest one that does."""
    for name in names:
        if name not in SUITES:
            near = hint(name, SUITES, otherwise=f"suites are {', '.join(SUITES)}")
            raise ValueError(f"there is no suite {name!r}; {near}")


def choose_scores(options: _Evaluate, trained: RunConfig | None) -> list[ScoreConfig]:
    """The configurations of the suites that are asked for, with --count and --seed put in.

    Raises ValueError for none, and for settings of others, which would have no effect.
    """
    sized = not options.suite or ("captions" in options.suite and options.captions == CaptionScores())
    fitting = fitting_suites(trained.data) if trained and sized else {}  # which may read the data
    names = dict.fromkeys(options.suite or (name for name in fitting if not options.peer or name == "scenes"))
    if not names:
        raise ValueError(f"no suite fits the training data by itself; name some with --suite: {', '.join(SUITES)}")
    for name in SUITES:
        if name not in names and getattr(options, name) != type(getattr(options, name))():
            raise ValueError(
                f"--{name}... has no effect where that suite is not run; add it: --suite {' '.join(names)} {name}"
            )
    if options.sampling.given() and not any(isinstance(getattr(options, name), SAMPLED) for name in names):
        raise ValueError(
            f"--sampling... has no effect on {', '.join(names)}, which neither write nor draw; leave it out"
        )
    suites = [getattr(options, name) for name in names]
    if options.seed is not None and all(with_given(suite, {"seed": -1}) == suite for suite in suites):
        raise ValueError(f"--seed has no effect on {', '.join(names)}, which draw nothing at random; leave it out")
    given = {name: value for name in ("count", "seed") if (value := getattr(options, name)) is not None}
    return [with_given(_fitted(options, name, fitting), given) for name in names]


def _fitted(options: _Evaluate, name: str, fitting: Mapping[str, ScoreConfig]) -> ScoreConfig:
    """The configuration of a suite; one that nobody changed fits the run's data. Of a peer only drawing is asked."""
    config: ScoreConfig = getattr(options, name)
    if isinstance(config, SceneScores) and options.peer:
        if config.tasks not in (SceneScores().tasks, ("draw",)):
            raise ValueError(f"a peer only draws, but --scenes.tasks is {' '.join(config.tasks)}; give draw alone")
        return replace(config, tasks=("draw",))
    own = fitting.get(name, config)
    if config != type(config)():
        return config
    if isinstance(own, CaptionScores) and options.suite:  # as it was asked for, among as many as there are
        return replace(own, cider=CaptionScores().cider)
    return own


def write_into_card(card: Path, records: Sequence[Record]) -> None:
    """Put the table into a model card."""
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    said = "\n".join([*table(records), "", *origins(records)])
    card.write_text(with_scores(text, said), encoding="utf-8")
