"""demo: train a small model from nothing, show what it can do, score it."""

from dataclasses import dataclass, replace

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from monoformer.cli.options import parse
from monoformer.cli.training import run
from monoformer.config.data import ScenesData
from monoformer.config.run import RunConfig
from monoformer.data.scenes import Scenes, draw
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.scenes import SceneEvaluator, to_picture
from monoformer.gallery import Cell, Section, draw_gallery
from monoformer.pipeline import Pipeline
from monoformer.presets import PRESETS
from monoformer.train.build import build_run

SCORES = {
    "draw_colour": "drawn objects with the right colour",
    "draw_colour_and_shape": "drawn objects with the right colour and shape",
    "draw_exact": "held-out captions drawn exactly right",
    "describe_exact": "held-out pictures described exactly right",
    "edit_exact": "edits exactly right, the rest unmoved",
    "answer_exact": "questions answered right",
}


@dataclass(frozen=True, kw_only=True)
class _Demo:
    """Train a small model from nothing for about five minutes and see what it can do."""

    folder: str = "runs/demo"
    """Where everything goes."""
    preset: str = "scenes-quick"
    """The preset that is trained (one on scenes)."""
    steps: int = 0
    """Training steps; 0: the preset's."""
    count: int = 256
    """Held-out items that each score is taken over."""


def demo(arguments: list[str]) -> None:
    """See it work: trains a small model from nothing in about five minutes, draws, describes, edits, writes"""
    options = parse(_Demo, arguments, command="demo")
    config = replace(PRESETS[options.preset](), name="demo", folder=options.folder)
    if options.steps:
        config = replace(config, train=replace(config.train, steps=options.steps))
    console = Console()
    built = build_run(config)
    config = built.parts.config
    console.print(f"One network learns to write and to draw ({built.news}). Everything goes to {config.path}/")
    if not run(built):
        console.print("stopped and saved; the same command goes on from here")
        return
    pipeline = Pipeline.from_pretrained(config.model_path)
    data = _scenes(config)
    draw_gallery(show(pipeline, data)).save(config.path / "gallery.png")
    table = Table("score (held-out, exact parser)", "share")
    for name, value in _evaluate(pipeline, data, options.count, console):
        table.add_row(SCORES.get(name, name), f"{value:.1%}")
    console.print(table)
    prompt = "a small blue ring left of a large red circle on a mint background"
    console.print(
        f"pictures: {config.path / 'gallery.png'}   curves: {config.path / 'curves.png'}\ntry next:\n"
        f'  monoformer generate {config.model_path} "{prompt}"\n  monoformer train scenes',
        soft_wrap=True,
    )


def show(pipeline: Pipeline, data: ScenesData) -> list[Section]:
    """What the model does with held-out items: draws, describes, edits, answers, writes."""
    scenes = Scenes(data, split="test", seed=1)
    drawings = [scenes.drawing(i) for i in range(12)]
    pictures = pipeline.generate_images([d.caption for d in drawings])
    described = [scenes.describing(i) for i in range(6)]
    shown = [to_picture(draw(d.scene, data.size)) for d in described]
    edits = [scenes.edit(i) for i in range(6)]
    before = [to_picture(draw(e.before, data.size)) for e in edits]
    after = pipeline.edit(before, [e.text for e in edits])
    questions = [scenes.question(i) for i in range(6)]
    asked = [to_picture(draw(q.scene, data.size)) for q in questions]
    answers = pipeline.answer(asked, [q.question for q in questions])
    beginnings = [" ".join(scenes.story(i).text.split()[:6]) for i in range(3)]
    texts = pipeline.generate_text(beginnings, temperature=0.7)
    return [
        Section("drawn from captions", tuple(Cell((p,), d.caption) for p, d in zip(pictures, drawings, strict=True))),
        Section("described", tuple(Cell((p,), c) for p, c in zip(shown, pipeline.caption(shown), strict=True))),
        Section("edited", tuple(Cell((b, a), e.text) for b, a, e in zip(before, after, edits, strict=True))),
        Section(
            "asked", tuple(Cell((p,), f"{q.question} {a}") for p, q, a in zip(asked, questions, answers, strict=True))
        ),
        Section("written", tuple(Cell((), f"{b} ...{t}") for b, t in zip(beginnings, texts, strict=True))),
    ]


def _scenes(config: RunConfig) -> ScenesData:
    if not isinstance(config.data, ScenesData):
        raise ValueError(f"demo needs a preset on scenes, but {config.name!r} trains on {type(config.data).__name__}")
    return config.data


def _evaluate(pipeline: Pipeline, data: ScenesData, count: int, console: Console) -> list[tuple[str, float]]:
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("scoring", total=4 * count)
        journal = Journal(watch=lambda n: bar.advance(task, n))
        evaluator = SceneEvaluator(pipeline, data, count=count, journal=journal)
        return list(evaluator.run())
