"""Our network beside Stable Diffusion's U-Net and a diffusion transformer: the same pictures, size and steps.

python benchmarks/baselines.py --network unet --preset cifar10 --seed 0
python benchmarks/baselines.py --network dit --preset scenes-quick --train.rows 4   # any option of `monoformer train`
python benchmarks/baselines.py --table

A baseline reads the preset's own batches: of every document that draws from text alone the caption, the picture and its
noise are those that `--network monoformer` has with the same seed, and so are the objective, the optimiser (or AdamW,
with --rate), the average of the weights, the sampler, the guidance and the scores. It has as many parameters, within a
tenth. Everything is kept in OUT/NAME, where the same command goes on after Ctrl-C, and OUT/results.jsonl. Scenes are
scored by their parser; other pictures are class names' and scored by a judge (reproduce/convert_resnet.py makes one).
Ends in one line of JSON, as `monoformer sweep` writes them.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from painter import PainterPipeline, build_painter, is_hidden, painter_losses, size_of
from rich.console import Console

from monoformer import __version__
from monoformer.batch import Batch
from monoformer.cli.study import draw_study
from monoformer.cli.training import read_config, run
from monoformer.config.data import ParquetData, ScenesData
from monoformer.config.evaluate import ClassScores, SceneScores
from monoformer.config.run import RunConfig, to_json
from monoformer.config.sweep import SweepConfig, SweepRun
from monoformer.config.train import AdamWConfig
from monoformer.device import choose
from monoformer.doctor import describe_device
from monoformer.evaluate.build import Subject, build_classes, build_scenes
from monoformer.evaluate.resnet import load_resnet
from monoformer.pipeline import Pipeline
from monoformer.pretrained import build_sequencer
from monoformer.sweep import Job, Record, append_result, commit, digest, read_results, totals, write_table
from monoformer.train.build import build_run
from monoformer.train.checkpoint import TrainState
from monoformer.train.loop import Loop, Numbers
from monoformer.train.metrics import read_metrics
from monoformer.train.optim import EMA, build_optimizers
from monoformer.train.precision import computes_in_bf16
from monoformer.train.trainer import count

CURVES = (("image_loss", "image loss"), ("images_per_second", "images / s"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained and how it is scored."""

    network: Literal["monoformer", "unet", "dit"] = "unet"
    """Ours, UNet2DConditionModel or PixArtTransformer2DModel."""
    preset: str = "cifar10"
    """Whose data, size, objective and steps all networks have."""
    steps: int = 0
    """Optimiser steps; 0: the preset's."""
    seed: int = 0
    """Seed of weights, documents and noise."""
    rate: float = 0.0
    """AdamW for all weights at this rate; 0: the preset's own optimiser."""
    count: int = 1000
    """Pictures that are scored."""
    judge: str = "runs/judges/resnet56.safetensors"
    """Classifier of the pictures of class names."""
    real: str = "data/cifar10/test.parquet"
    """Real pictures that those are compared with."""
    out: Path = Path("runs/baselines")
    table: bool = False
    """Only print the table of what is in OUT/results.jsonl."""


def configure(case: Case, options: Sequence[str]) -> RunConfig:
    """The preset with these options, in a folder of the network's own."""
    config = read_config([case.preset, *options])
    steps = case.steps or config.train.steps
    warmup = min(config.train.warmup, steps)
    train = replace(config.train, steps=steps, warmup=warmup, pass_rows=0, tensorboard=False)
    if case.rate:
        train = replace(train, optimizer=AdamWConfig(rate=case.rate))
    name = f"{case.preset}-{case.network}-seed{case.seed}"
    return replace(config, seed=case.seed, train=train, name=name, folder=str(case.out / name))


def scoring(case: Case, config: RunConfig) -> SceneScores | ClassScores:
    """Scenes by their parser, other pictures by the judge."""
    if isinstance(config.data, ScenesData):
        return SceneScores(tasks=("draw",), count=case.count)
    real = ParquetData(files=(case.real,), caption="{label}", size=config.model.image_sizes[0][0])
    return ClassScores(judge=case.judge, real=real, count=case.count)


def train_ours(config: RunConfig) -> tuple[Pipeline, int]:
    """Our own network, as `monoformer train` trains it, and its parameters."""
    if not (config.model_path / "config.json").is_file() and not run(build_run(config)):
        sys.exit(130)
    pipeline = Pipeline.from_pretrained(config.model_path, device=config.train.device)
    return pipeline, size_of(pipeline.pretrained.model)


def train_baseline(kind: Literal["unet", "dit"], config: RunConfig) -> tuple[PainterPipeline, int]:
    """A network of diffusers of the size of ours, trained on what ours reads, and its parameters."""
    built = build_run(config)
    parts, tokenizer, config = built.parts, built.pretrained.tokenizer, built.parts.config
    ours, vocabulary = size_of(parts.model), config.model.vocabulary
    painter = build_painter(kind, config.model, vocabulary=vocabulary, parameters=ours, seed=config.seed)
    painter = painter.to(parts.device)
    Console(stderr=True).print(f"{kind}: {size_of(painter) / 1e6:.2f}M parameters, ours {ours / 1e6:.2f}M")
    optimizers = build_optimizers(painter, config.train, hidden=is_hidden)
    state = TrainState(model=painter, ema=EMA(painter), optimizers=optimizers)
    loop: Loop[Batch] = Loop(config, state, describe=describe_step, curves=CURVES)
    bf16 = computes_in_bf16(config.train, parts.device)

    def train_step(read: list[Batch]) -> Numbers:
        with torch.autocast(parts.device.type, dtype=torch.bfloat16, enabled=bf16):
            losses = painter_losses(
                painter,
                read[0].to(parts.device),
                tokenizer,
                objective=parts.objective,
                autoencoder=parts.autoencoder,
                seed=config.seed,
            )
        if not len(losses):
            raise ValueError("a step's documents draw nothing from text alone; give more rows, --train.rows")
        loss = losses.mean()
        loss.backward()
        return {"image_loss": loss.item(), "pictures": len(losses), "gradient_norm": loop.descend()}

    if not loop.run(parts.loader, train_step, count):
        sys.exit(128 + loop.ended_by)
    painter.load_state_dict(state.averaged())
    pipeline = PainterPipeline(
        painter=painter.eval(),
        objective=parts.objective,
        autoencoder=parts.autoencoder,
        sequencer=build_sequencer(config.model, tokenizer, config.sequence),
        settings=config.generate,
        size=config.model.image_sizes[0],
        device=parts.device,
    )
    return pipeline, size_of(painter)


def describe_step(line: Numbers) -> str:
    """The progress bar's numbers."""
    return f"image {line['image_loss']:.3f}  {line['pictures']:.0f} pictures in {line['seconds']:.2f} s"


def measure(case: Case, config: RunConfig, options: Sequence[str], own: str) -> Record:
    """Train and score; what came of it, as `monoformer sweep` writes it down."""
    score = scoring(case, config)
    if isinstance(score, ClassScores):
        load_resnet(score.judge)  # what is missing is said before the training
    drawer: Any
    drawer, size = train_ours(config) if case.network == "monoformer" else train_baseline(case.network, config)
    subject = Subject(pipeline=drawer, data=config.data)
    evaluator = build_scenes(score, subject) if isinstance(score, SceneScores) else build_classes(score, subject)
    lines = read_metrics(config.path / "metrics.jsonl")
    return {
        "digest": own,
        "run": f"{case.preset} {case.network}",
        "seed": case.seed,
        "arguments": [case.preset, *options],
        "folder": str(config.path),
        "commit": commit(),
        "version": __version__,
        "device": f"{describe_device(choose(config.train.device))}, {torch.get_num_threads()} threads",
        "parameters": size,
        "weight_bytes": 4 * size,
        **totals(lines, tokens=config.train.rows * config.sequence.row),
        "scores": dict(evaluator.run()),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def show(records: Sequence[Record], out: Path) -> None:
    """The table on the screen, the picture in the folder: a row a preset and network, over its seeds."""
    last = {(record["run"], record["seed"]): record for record in records}
    names = dict.fromkeys(name for name, _ in last)
    runs = {
        name: SweepRun(name=name.replace(" ", "-"), preset="-", seeds=tuple(seed for own, seed in last if own == name))
        for name in names
    }
    study = SweepConfig(title="Networks side by side", runs=tuple(runs.values()))
    jobs = [
        Job(
            run=runs[name],
            seed=seed,
            round=0,
            asked=(),
            arguments=(),
            config=RunConfig(),
            scores=(),
            needs=(),
            digest=record["digest"],
        )
        for (name, seed), record in last.items()
    ]
    print(write_table(study, jobs, list(last.values())))
    draw_study(study, jobs, list(last.values()), out / "study.png")


def main() -> None:
    """Train and score what is missing; one line of JSON, or the table."""
    case, options = tyro.cli(Case, return_unknown_args=True)
    results = case.out / "results.jsonl"
    if case.table:
        if not read_results(results):
            sys.exit(f"there is nothing in {results} yet")
        show(read_results(results), case.out)
        return
    case.out.mkdir(parents=True, exist_ok=True)
    config = configure(case, options)
    asked = [case.network, to_json(replace(config, name="", folder="")), to_json(scoring(case, config))]
    own = digest(asked, case.out)
    found = [record for record in read_results(results) if record["digest"] == own]
    if not found:
        found = [measure(case, config, options, own)]
        append_result(results, found[0])
    print(json.dumps({"benchmark": "baselines", **found[-1]}))


if __name__ == "__main__":
    main()
