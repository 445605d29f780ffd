"""train: a preset or a saved configuration, with any field replaced; resumes by itself."""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from torch import Tensor

from monoformer.card import write_card
from monoformer.cli.autoencoder import train_autoencoder
from monoformer.cli.options import called, parse, say_go_on, take
from monoformer.cli.scoring import build_scores, check_scored
from monoformer.config.run import RunConfig, load_config
from monoformer.config.spelling import hint
from monoformer.config.train import SAMPLES, shown_slots
from monoformer.data.build import build_held_out
from monoformer.device import choose
from monoformer.document import Document, Text
from monoformer.evaluate.prompts import drawings
from monoformer.gallery import Cell, Section, draw_gallery
from monoformer.pipeline import Pipeline
from monoformer.presets import PRESETS
from monoformer.pretrained import save_pretrained
from monoformer.train.build import Built, build_run
from monoformer.train.loop import Sample
from monoformer.train.parallel import processes
from monoformer.train.saved import read_saved
from monoformer.train.sizes import picture_sizes
from monoformer.train.start import check_taken
from monoformer.train.trainer import Trainer, empty_copy


def train(arguments: list[str]) -> None:
    """Train: monoformer train PRESET [--train.steps 200 ...], or --config FILE; the same command again goes on"""
    if arguments[:1] == ["autoencoder"]:
        train_autoencoder(arguments[1:])
        return
    preset, rest, command = _default(arguments)
    asked = config = parse(RunConfig, rest, command=command, default=preset)
    check_scored(config)
    with processes(choose(config.train.device)) as ranks:
        console = Console(quiet=not ranks.first)

        def warn(line: str) -> None:
            console.print(f"warning: {line}", style="bold", markup=False, soft_wrap=True)

        built = build_run(config, ranks=ranks, warn=warn)
        config = built.parts.config
        check_taken(asked, preset, config)
        among = f", {ranks.world} processes" if ranks.world > 1 else ""
        said = f"in {config.path} on {built.parts.device}{among}: {built.news}"
        console.print(config.name, style="bold", end=" ", markup=False, highlight=False)
        console.print(said, markup=False)
        finished = run(built)
    if not finished:
        say_go_on(console, ["train", *arguments])
        return
    made = config.model_path
    draws = f"\n  {called()} generate {made} PROMPT --out picture.png\n  {called()} chat {made}"
    then = draws if picture_sizes(config.data) else f"\n  {called()} write {made} PROMPT"
    console.print(f"done: {made}{then}", markup=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class _Save:
    """Write a checkpoint of a run as a model folder, while it goes on or after it was broken off."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    out: Annotated[Path, tyro.conf.Positional]
    """The model folder to write."""
    step: int = 0
    """Which checkpoint; 0: the last."""


def save(arguments: list[str]) -> None:
    """Write a run's last checkpoint as a model folder: monoformer save RUN OUT [--step N]"""
    options = parse(_Save, arguments, command="save")
    config = replace(load_config(options.run / "config.json"), folder=str(options.run))
    step, pretrained, weights = read_saved(config, step=options.step)
    config = replace(config, model=pretrained.model.config)
    save_pretrained(options.out, pretrained, weights=weights, card=write_card(config, parameters=_count(weights)))
    print(f"step {step}: {options.out}")


def _count(weights: dict[str, Tensor]) -> int:
    """Parameters, tied ones once."""
    return sum({value.data_ptr(): value.numel() for value in weights.values()}.values())


def run(built: Built) -> bool:
    """Train to the end and write the model folder; False when Ctrl-C stopped the run early.

    A run that SIGTERM stopped is saved and exits with code 143, so that what supervises it (torchrun's restarts, a
    batch system) starts it again.
    """
    config, ranks = built.parts.config, built.parts.ranks
    pipeline = build_pipeline(built) if ranks.first and shown_slots(config.train) else None
    sample = build_sample(built, pipeline) if pipeline and config.train.sample_every else None
    scores = build_scores(built, pipeline) if pipeline and config.train.evaluate_every else None
    trainer = Trainer(built.parts, sample=sample, scores=scores)
    finished = trainer.run()
    if trainer.loop.ended_by == signal.SIGTERM:
        sys.exit(128 + signal.SIGTERM)
    if not finished:
        return False
    weights = ranks.whole(trainer.state.averaged())
    with ranks.in_turn():
        if ranks.first:
            weights = built.plain(weights)
            card = write_card(config, parameters=_count(weights))
            save_pretrained(config.model_path, built.pretrained, weights=weights, card=card)
    return True


def read_config(arguments: list[str]) -> RunConfig:
    """The configuration that the arguments name: a preset or --config FILE, then single fields; --from is --start."""
    default, rest, command = _default(arguments)
    return parse(RunConfig, rest, command=command, default=default)


def _default(arguments: list[str]) -> tuple[RunConfig, list[str], str]:
    """The preset or file that the arguments name, the arguments that change single fields of it, and the command."""
    rest = [("--start" + a[6:]) if a == "--from" or a.startswith("--from=") else a for a in arguments]
    rest, given = take(rest, config="")
    if given["config"]:
        return load_config(Path(given["config"])), rest, "train --config FILE"
    if not rest or rest[0].startswith("-"):
        if rest and rest[0] in ("-h", "--help"):
            return PRESETS["scenes"](), rest, "train PRESET"
        raise ValueError(f"name a preset first: monoformer train PRESET; presets are {', '.join(PRESETS)}")
    return find_preset(rest[0])(), rest[1:], f"train {rest[0]}"


def find_preset(name: str) -> Callable[[], RunConfig]:
    """The preset of that name; a misspelt one is answered with the nearest right one."""
    if name not in PRESETS:
        raise ValueError(
            f"preset {name!r} not found; {hint(name, PRESETS, otherwise='presets are ' + ', '.join(PRESETS))}"
        )
    return PRESETS[name]


def build_pipeline(built: Built) -> Pipeline:
    """What draws and writes while the run goes on: one network more, which takes the averaged weights each time."""
    parts = built.parts
    pretrained = replace(built.pretrained, model=empty_copy(parts))
    slots = shown_slots(parts.config.train)
    return Pipeline(pretrained, autoencoder=parts.autoencoder, vision=parts.vision, slots=slots)


def build_sample(built: Built, pipeline: Pipeline) -> Sample:
    """Draws the same held-out prompts with the averaged weights into the run's samples/ folder."""
    config = built.parts.config
    prompts = sample_prompts(config)

    def sample(step: int, weights: dict[str, Tensor]) -> Path:
        pipeline.load_weights(built.plain(weights))
        folder = config.path / "samples"
        folder.mkdir(exist_ok=True)
        pictures = pipeline.generate(prompts, want="image")
        cells = tuple(
            Cell((made.images[0].to_pil(),), _words(prompt)) for made, prompt in zip(pictures, prompts, strict=True)
        )
        grid = folder / f"step-{step:08d}.png"
        draw_gallery([Section(f"step {step}", cells)]).save(grid)
        return grid

    return sample


def sample_prompts(config: RunConfig) -> list[Document]:
    """What precedes the drawn picture in the first documents of the held-out split that draw one from text."""
    source = build_held_out(config.data, seed=config.seed)
    return [prompt for prompt, _ in drawings(source, count=SAMPLES)]


def _words(document: Document) -> str:
    return " ".join(segment.text for segment in document.segments if isinstance(segment, Text))
