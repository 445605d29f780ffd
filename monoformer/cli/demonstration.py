"""demo: show what the released model can do, or train a small one from nothing, show it and score it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from monoformer.card import read_card, read_examples
from monoformer.cli.options import called, check_folder, parse
from monoformer.cli.training import find_preset, run
from monoformer.config.data import ScenesData, TextData
from monoformer.config.run import RunConfig
from monoformer.data.scenes import Scenes, draw
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.material import scenes_of, sources
from monoformer.evaluate.scenes import SceneEvaluator, to_picture
from monoformer.gallery import Cell, Section, draw_gallery
from monoformer.pipeline import Pipeline
from monoformer.train.build import build_run

SCORES = {
    "draw_colour": "drawn objects with the right colour",
    "draw_colour_and_shape": "drawn objects with the right colour and shape",
    "draw_exact": "held-out captions drawn exactly right",
    "describe_exact": "held-out pictures described exactly right",
    "edit_exact": "edits exactly right, the rest unmoved",
    "answer_exact": "questions answered right",
}


RELEASED = Path("models/monoformer-mini")
"""The released model, in the repository."""

PROMPT = "a small blue ring left of a large red circle on a mint background"

TONES = ("dark", "light", "medium")

BEGINNINGS = ("It was the best of times,", "Once upon a time there was", "The old man looked at the sea and")
"""Texts that a model which has read books goes on writing."""


@dataclass(frozen=True, kw_only=True)
class _Demo:
    """See what a model can do: the released one, in a minute, or one that is trained from nothing in five."""

    train: bool = False
    """Train a small model from nothing first, and score it."""
    model: str = ""
    """The model folder that is shown; empty: the released one."""
    folder: str = ""
    """Where everything goes; empty: runs/demo, or with `train` runs/demo-train."""
    preset: str = "scenes-quick"
    """The preset that `train` takes (one on scenes)."""
    steps: int = 0
    """Training steps; 0: the preset's."""
    count: int = 256
    """Held-out items that each score is taken over, with `train`."""

    def __post_init__(self) -> None:
        if self.train and self.model:
            raise ValueError(f"demo trains a model of its own with --train; leave --model {self.model} or --train out")
        if not self.train and (self.steps or (self.preset, self.count) != ("scenes-quick", 256)):
            raise ValueError("demo: --preset, --steps and --count are of the model that --train trains; add --train")


def demo(arguments: list[str]) -> None:
    """See it work: a trained model draws, describes, edits, answers and writes; --train trains one from nothing"""
    options = parse(_Demo, arguments, command="demo")
    if options.train:
        train_and_show(options)
        return
    show_model(options.model or str(released()), Path(options.folder or "runs/demo"))


def released() -> Path:
    """Where the released model lies; ValueError where there is none beside the package."""
    places = (RELEASED, Path(__file__).parents[2] / RELEASED)
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise ValueError(
        f"the released model {RELEASED} comes with the repository, not with the package alone; name another one, "
        f"--model FOLDER, or train a small one from nothing in about five minutes, --train"
    )


def show_model(model: str, folder: Path) -> None:
    """Leave a gallery of what a model folder can do."""
    console, began = Console(), time.perf_counter()
    check_folder(folder, option="--folder")
    pipeline = Pipeline.from_pretrained(model)
    trained = read_card(pipeline.card)
    data = scenes_of(None if trained is None else trained.data, pipeline, name="demo")
    sections: list[Section] = []
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("drawing, describing, editing, answering, writing", total=None)
        for section in chain(
            show_prompts(pipeline, read_examples(pipeline.card)), show(pipeline, data), show_texts(pipeline, trained)
        ):
            sections.append(section)
            bar.advance(task)
    folder.mkdir(parents=True, exist_ok=True)
    draw_gallery(sections).save(folder / "gallery.png")
    console.print(
        f"{model} drew, described, edited, answered and wrote in {time.perf_counter() - began:.0f} s: "
        f"{folder / 'gallery.png'}\ntry next:\n"
        f'  {called()} generate {model} "{PROMPT}"\n  {called()} chat {model}\n  {called()} demo --train',
        soft_wrap=True,
    )


def train_and_show(options: _Demo) -> None:
    """Train a preset on scenes from nothing; gallery and scores."""
    config = replace(find_preset(options.preset)(), name="demo", folder=options.folder or "runs/demo-train")
    if options.steps:
        warmup = min(config.train.warmup, options.steps)
        config = replace(config, train=replace(config.train, steps=options.steps, warmup=warmup))
    console = Console()
    built = build_run(config)
    config = built.parts.config
    console.print(f"One network learns to write and to draw ({built.news}). Everything goes to {config.path}/")
    if not run(built):
        console.print("stopped and saved; the same command goes on from here")
        return
    pipeline = Pipeline.from_pretrained(config.model_path)
    data = scenes_of(config.data, pipeline, name="demo")
    draw_gallery(list(show(pipeline, data))).save(config.path / "gallery.png")
    table = Table("score (held-out, exact parser)", "share")
    for name, value in _evaluate(pipeline, data, options.count, console):
        table.add_row(SCORES.get(name, name), f"{value:.1%}")
    console.print(table)
    console.print(
        f"pictures: {config.path / 'gallery.png'}   curves: {config.path / 'curves.png'}\ntry next:\n"
        f'  {called()} generate {config.model_path} "{PROMPT}"\n  {called()} train scenes',
        soft_wrap=True,
    )


def show_prompts(pipeline: Pipeline, names: list[str]) -> Iterator[Section]:
    """Pictures of the prompts that a model's card names; those of people once more with another skin tone."""
    if not names:
        return
    drawn = dict(zip(names, pipeline.generate_images(names), strict=True))
    yield Section("drawn from the card's prompts", tuple(Cell((picture,), name) for name, picture in drawn.items()))
    toned = [name for name in names if name.endswith(" skin tone")]
    if toned:
        words = [f"Change the skin tone to {TONES[number % len(TONES)]}." for number in range(len(toned))]
        before = [drawn[name] for name in toned]
        after = pipeline.edit(before, words)
        yield Section("edited", tuple(Cell((b, a), text) for b, a, text in zip(before, after, words, strict=True)))


def show_texts(pipeline: Pipeline, trained: RunConfig | None) -> Iterator[Section]:
    """How a model that has read books goes on with one."""
    if trained is None or not any(isinstance(source, TextData) for source in sources(trained.data)):
        return
    texts = pipeline.generate_text(list(BEGINNINGS), temperature=0.7, max_tokens=40)
    yield Section("written", tuple(Cell((), f"{b} ...{t}") for b, t in zip(BEGINNINGS, texts, strict=True)))


def show(pipeline: Pipeline, data: ScenesData) -> Iterator[Section]:
    """What the model does with held-out scenes: draws, describes, edits, answers, writes."""
    scenes = Scenes(data, split="test", seed=1)
    drawings = [scenes.drawing(i) for i in range(12)]
    pictures = pipeline.generate_images([d.caption for d in drawings])
    yield Section("drawn from captions", tuple(Cell((p,), d.caption) for p, d in zip(pictures, drawings, strict=True)))
    shown = [to_picture(draw(scenes.describing(i).scene, data.size)) for i in range(6)]
    yield Section("described", tuple(Cell((p,), c) for p, c in zip(shown, pipeline.caption(shown), strict=True)))
    edits = [scenes.edit(i) for i in range(6)]
    before = [to_picture(draw(e.before, data.size)) for e in edits]
    after = pipeline.edit(before, [e.text for e in edits])
    yield Section("edited", tuple(Cell((b, a), e.text) for b, a, e in zip(before, after, edits, strict=True)))
    questions = [scenes.question(i) for i in range(6)]
    asked = [to_picture(draw(q.scene, data.size)) for q in questions]
    answers = pipeline.answer(asked, [q.question for q in questions])
    yield Section(
        "asked", tuple(Cell((p,), f"{q.question} {a}") for p, q, a in zip(asked, questions, answers, strict=True))
    )
    beginnings = [" ".join(scenes.story(i).text.split()[:6]) for i in range(3)]
    texts = pipeline.generate_text(beginnings, temperature=0.7)
    yield Section("written", tuple(Cell((), f"{b} ...{t}") for b, t in zip(beginnings, texts, strict=True)))


def _evaluate(pipeline: Pipeline, data: ScenesData, count: int, console: Console) -> list[tuple[str, float]]:
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("scoring", total=4 * count)
        journal = Journal(watch=lambda n: bar.advance(task, n))
        evaluator = SceneEvaluator(pipeline, data, count=count, journal=journal)
        return list(evaluator.run())
