"""How long two recipes train until they draw 70% of held-out scenes exactly right: a preset's own and the official one.

python benchmarks/time_to_quality.py --preset scenes-quick --out runs/time-to-quality
python benchmarks/time_to_quality.py --preset scenes --limit 300 --train.steps 8000   # any option of `monoformer train`

Both have the same data, rows and size of network. `official` is that of the preset monoformer-imagenet256: a projected
time token, eps of DDPM with learned variance, AdamW at a constant 1e-4, its weights of the losses. They train in turn,
a slice up to the next score at a time, so that whatever else the machine does is shared. The time of scoring and of
starting does not count. Everything is kept in OUT, and the same command goes on; other settings need another OUT.
Leaves OUT/results.jsonl and OUT/time-to-quality.png, and ends in one line of JSON.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import tyro
from rich.console import Console
from torch import Tensor

from monoformer.cli.training import read_config
from monoformer.config.data import ScenesData
from monoformer.config.run import RunConfig
from monoformer.evaluate.scenes import SceneEvaluator
from monoformer.pipeline import Pipeline
from monoformer.presets import PRESETS
from monoformer.sweep import Record, totals
from monoformer.train.build import Built, build_run
from monoformer.train.metrics import read_metrics
from monoformer.train.operations import Operations, seen_in
from monoformer.train.trainer import Trainer, empty_copy

OFFICIAL = "monoformer-imagenet256"
"""The preset that the official recipe is taken from."""
ENDLESS = 1_000_000
"""Steps of the official recipe, whose rate is constant: until the limit."""
COUNTED = 20
"""Steps whose operations are counted; the mean stands for all."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and when it ends."""

    preset: str = "scenes-quick"
    """A preset on scenes, whose network and data both recipes have."""
    target: float = 0.7
    """Share of held-out captions drawn exactly right at which a recipe is done."""
    limit: float = 60.0
    """Minutes of training after which a recipe is given up."""
    every: int = 100
    """Steps between two scores, and of a slice."""
    count: int = 128
    """Held-out captions in a score."""
    seed: int = 0
    """Seed of the captions."""
    official_sampling: int = 250
    """Denoising steps of the official recipe's sampler."""
    out: Path = Path("runs/time-to-quality")


def recipes(case: Case, options: list[str]) -> dict[str, RunConfig]:
    """The preset with these options, and the official recipe on its data and size."""
    ours = read_config([case.preset, *options])
    if not isinstance(ours.data, ScenesData):
        raise ValueError(f"the exact score is of scenes alone, but {case.preset} trains on others; try scenes-quick")
    theirs = PRESETS[OFFICIAL]()
    kept = {name: getattr(theirs.model, name) for name in ("time", "image_head", "learned_variance", "qk_norm")}
    official = replace(
        ours,
        model=replace(ours.model, **kept),
        diffusion=theirs.diffusion,
        sequence=replace(
            ours.sequence, noise_draws=1, text_loss_in_image_documents=theirs.sequence.text_loss_in_image_documents
        ),
        train=replace(theirs.train, steps=ENDLESS, rows=ours.train.rows, parallel=ours.train.parallel),
        generate=replace(theirs.generate, steps=case.official_sampling),
    )
    return {name: _watched(run, case, name) for name, run in (("ours", ours), ("official", official))}


def _watched(run: RunConfig, case: Case, name: str) -> RunConfig:
    """The run in a folder of its own, scored and saved at the end of every slice."""
    every = case.every
    train = replace(
        run.train,
        log_every=every,
        checkpoint_every=every,
        evaluate_every=every,
        keep=1,
        sample_every=0,
        tensorboard=False,
    )
    return replace(run, name=name, folder=str(case.out / name), train=train)


def operations_of_a_step(config: RunConfig) -> float:
    """Floating-point operations of one training step, forward and backward; the mean of the first ones."""
    parts = build_run(config).parts
    operations = Operations(parts.model)
    counts = [operations.count(seen_in(next(parts.loader))) for _ in range(COUNTED)]
    parts.loader.close()
    return sum(counts) / len(counts)


def advance(config: RunConfig, case: Case) -> None:
    """Train on to the next score."""
    built = build_run(config)
    trainer = Trainer(built.parts, scores=lambda _, weights: _score_and_stop(built, trainer, weights, case))
    trainer.run()
    if trainer.loop.ended_by:
        sys.exit(128 + trainer.loop.ended_by)


def _score_and_stop(built: Built, trainer: Trainer, weights: dict[str, Tensor], case: Case) -> dict[str, float]:
    """How well the averaged weights draw; the slice ends here."""
    trainer.loop.stop()
    model = empty_copy(built.parts)
    model.load_state_dict(built.plain(weights))
    pipeline = Pipeline(
        replace(built.pretrained, model=model), autoencoder=built.parts.autoencoder, slots=2 * min(case.count, 64)
    )
    data = built.parts.config.data
    assert isinstance(data, ScenesData)
    evaluator = SceneEvaluator(pipeline, data, count=case.count, seed=case.seed, tasks=("draw",))
    return {name: float(value) for name, value in evaluator.run()}


def points(name: str, config: RunConfig, *, operations: float) -> list[Record]:
    """A recipe's scores so far, with the training that each one took, from the run's own metrics."""
    lines = read_metrics(config.path / "metrics.jsonl")
    found = []
    for line in lines:
        if "scores" in line:
            before = [other for other in lines if "scores" not in other and other["step"] <= line["step"]]
            seconds = totals(before, tokens=0)["seconds"]
            took = {"minutes": seconds / 60, "operations": operations * line["step"]}
            found.append({"recipe": name, "step": line["step"], **took, **line["scores"]})
    return found


def is_done(records: list[Record], config: RunConfig, case: Case) -> bool:
    """Whether a recipe has reached the target, its last step or the limit."""
    if not records:
        return False
    last = records[-1]
    return _reached(records, case) is not None or last["minutes"] >= case.limit or last["step"] >= config.train.steps


def _reached(records: list[Record], case: Case) -> Record | None:
    return next((record for record in records if record["draw_exact"] >= case.target), None)


def measure(case: Case, options: list[str]) -> dict[str, list[Record]]:
    """Train both in turn until they are done; their scores."""
    runs = recipes(case, options)
    operations = {name: operations_of_a_step(run) for name, run in runs.items()}
    console = Console(stderr=True)
    while True:
        found = {name: points(name, run, operations=operations[name]) for name, run in runs.items()}
        text = "".join(json.dumps(record) + "\n" for records in found.values() for record in records)
        (case.out / "results.jsonl").write_text(text, encoding="utf-8")
        left = [name for name, run in runs.items() if not is_done(found[name], run, case)]
        if not left:
            return found
        for name in left:
            advance(runs[name], case)
            last = points(name, runs[name], operations=operations[name])[-1]
            console.print(f"{name}: step {last['step']}, {last['minutes']:.1f} min, {last['draw_exact']:.1%} exact")


def plot(found: dict[str, list[Record]], case: Case) -> None:
    """Two panels: against minutes and against operations."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True, sharey=True)
    for axis, across, unit in zip(axes, ("minutes", "operations"), (1.0, 1e15), strict=True):
        for name, records in found.items():
            exact = [record["draw_exact"] for record in records]
            axis.plot([record[across] / unit for record in records], exact, marker=".", label=name)
        axis.axhline(case.target, color="grey", linewidth=0.8)
        axis.grid(alpha=0.3)
    axes[0].set(xlabel="minutes of training", ylabel="drawn exactly")
    axes[1].set(xlabel="operations (10^15)")
    axes[0].legend(fontsize=8)
    figure.savefig(case.out / "time-to-quality.png", dpi=110)


def main() -> None:
    """Train what is missing; the picture and where each recipe came to."""
    case, options = tyro.cli(Case, return_unknown_args=True)
    case.out.mkdir(parents=True, exist_ok=True)
    found = measure(case, options)
    plot(found, case)
    summary = {
        name: {"reached": _reached(records, case) is not None, **(_reached(records, case) or records[-1])}
        for name, records in found.items()
    }
    said = {"benchmark": "time_to_quality", "preset": case.preset, "target": case.target, "count": case.count}
    print(json.dumps({**said, "recipes": summary}))


if __name__ == "__main__":
    main()
