"""How many held-out scenes a model draws exactly right: against the evaluations of its network, against guidance, and
with every other setting of drawing; edits with guidance by the picture.

python benchmarks/quality.py --model MODEL --count 128 --out runs/quality
python benchmarks/quality.py --model MODEL --evaluations 4 8 --guidances 1 2   # fewer points

Every sampler that fits the model; a point that is in OUT/results.jsonl for the same weights, count and seed is not
drawn again. Leaves OUT/quality.png, and ends in one line of JSON with the best of each sampler, and with the fewest
evaluations that are enough: no worse than the lower end of the best one's 95% interval.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from monoformer.card import read_card
from monoformer.config.generate import GenerateConfig, check_sampler
from monoformer.evaluate.digests import digest_chunks, read_chunks
from monoformer.evaluate.material import scenes_of
from monoformer.evaluate.scenes import SceneEvaluator
from monoformer.evaluate.score import share
from monoformer.pipeline import Pipeline
from monoformer.pretrained import find_folder
from monoformer.sweep import Record, append_result, read_results

SAMPLERS = {
    "euler": {"sampler": "euler", "eta": 0.0},
    "heun": {"sampler": "heun", "eta": 0.0},
    "ddim": {"sampler": "ddim", "eta": 0.0},
    "ddim, eta 1": {"sampler": "ddim", "eta": 1.0},
    "ddpm": {"sampler": "ddpm", "eta": 0.0},
    "dpm++2m": {"sampler": "dpm++2m", "eta": 0.0},
}

DRAWING: dict[str, Record] = {
    "quadratic spacing": {"spacing": "quadratic"},
    "guidance below t = 0.8": {"guidance_interval": (0.0, 0.8)},
    "guidance above t = 0.2": {"guidance_interval": (0.2, 1.0)},
    "guidance between them": {"guidance_interval": (0.2, 0.8)},
    "guidance rescaled by 0.7": {"guidance_rescale": 0.7},
}
"""Changes of the model's own settings, for drawing."""
EDITING: dict[str, Record] = {
    "own settings": {},
    "image guidance 1.5": {"image_guidance": 1.5},
    "image guidance 2": {"image_guidance": 2.0},
}
"""Changes of the model's own settings, for edits."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is drawn."""

    model: str
    """A folder of a model that was trained on scenes."""
    count: int = 128
    """Held-out captions for each point."""
    seed: int = 0
    """Seed of the captions; choose settings by other captions than those that they are scored on."""
    evaluations: tuple[int, ...] = (1, 2, 4, 8, 12, 20, 30, 50)
    """Evaluations of the network for a picture, guidance not counted twice."""
    guidances: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """Scales of guidance, with the model's own sampler and steps."""
    others: bool = True
    """The other settings of drawing and editing too."""
    out: Path = Path("runs/quality")


def points(case: Case, default: GenerateConfig) -> Iterator[tuple[Record, GenerateConfig]]:
    """What is drawn, by name, and its settings."""
    for name, sampler in SAMPLERS.items():
        for evaluations in case.evaluations:
            steps = (evaluations + 1) // 2 if name == "heun" else evaluations
            asked = 2 * steps - 1 if name == "heun" else steps  # heun asks twice a step, once in the last
            if asked == evaluations or asked not in case.evaluations:
                settings = replace(default, steps=steps, **sampler)  # type: ignore[arg-type]
                yield {"sampler": name, "evaluations": asked}, settings
    unguided = {name: field.default for name, field in GenerateConfig.__dataclass_fields__.items() if "guid" in name}
    for scale in case.guidances:
        changes = {**unguided, "guidance": 1.0} if scale == 1 else {"guidance": scale}
        yield {"guidance": scale}, replace(default, **changes)  # type: ignore[arg-type]
    for task, variants in (("draw", DRAWING), ("edit", EDITING)) if case.others else ():
        for name, changes in variants.items():
            yield {"task": task, "setting": name}, replace(default, **changes)


def measure(case: Case) -> list[Record]:
    """Draw what is not in the results yet; all points that fit the model."""
    pipeline = Pipeline.from_pretrained(case.model)
    trained = read_card(pipeline.card)
    data = scenes_of(None if trained is None else trained.data, pipeline, name="quality")
    results, folder = case.out / "results.jsonl", find_folder(case.model)
    weights = digest_chunks(chunk for file in sorted(folder.glob("*.safetensors")) for chunk in read_chunks(file))
    origin = {"weights": weights, "count": case.count, "seed": case.seed}
    known = {_key(record): record for record in read_results(results)}
    made: list[Record] = []
    for point, settings in track(
        list(points(case, pipeline.pretrained.generate)), "drawing", console=Console(stderr=True)
    ):
        key = _key({"point": point, **origin})
        if key not in known:
            try:
                check_sampler(settings, pipeline.pretrained.diffusion)
            except ValueError:
                continue  # of the other kind of diffusion
            pipeline.pretrained = replace(pipeline.pretrained, generate=settings)
            evaluator = SceneEvaluator(
                pipeline, data, count=case.count, seed=case.seed, tasks=(point.get("task", "draw"),)
            )
            known[key] = {"point": point, **origin, **dict(evaluator.run())}
            append_result(results, known[key])
        made.append(known[key])
    return made


def _key(record: Record) -> str:
    return json.dumps([record.get(name) for name in ("point", "weights", "count", "seed")])


def interval(record: Record) -> tuple[float, float]:
    """The 95% interval of a point's share of drawings that are exactly right."""
    score = share(round(record["draw_exact"] * record["count"]), record["count"])
    assert score.low is not None
    assert score.high is not None
    return score.low, score.high


def best_of(records: list[Record], sampler: str) -> Record:
    """A sampler's best point, the cheapest of equals, and the fewest evaluations that are enough; empty without any."""
    own = [record for record in records if record["point"].get("sampler") == sampler]
    if not own:
        return {}
    best = max(own, key=lambda record: (record["draw_exact"], -record["point"]["evaluations"]))
    enough = [r["point"]["evaluations"] for r in own if r["draw_exact"] >= interval(best)[0]]
    return {"draw_exact": best["draw_exact"], "evaluations": best["point"]["evaluations"], "enough": min(enough)}


def plot(records: list[Record], target: Path) -> None:
    """Two panels with 95% intervals: against evaluations for every sampler, and against guidance."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True, sharey=True)
    lines = {name: [r for r in records if r["point"].get("sampler") == name] for name in SAMPLERS}
    for (name, line), style in zip(lines.items(), ("-", "-.", "--", "-", "-", ":"), strict=True):  # some coincide
        if line:
            _draw_line(left, sorted(line, key=lambda r: r["point"]["evaluations"]), "evaluations", style, name)
    _draw_line(right, [record for record in records if "guidance" in record["point"]], "guidance", "-", "")
    ticks = sorted({r["point"]["evaluations"] for line in lines.values() for r in line if line is not lines["heun"]})
    left.set(xlabel="evaluations of the network", ylabel="drawn exactly", xscale="log")
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    left.minorticks_off()
    right.set(xlabel="guidance")
    left.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(target, dpi=110)


def _draw_line(axis: Any, records: list[Record], across: str, style: str, label: str) -> None:
    places = [record["point"][across] for record in records]
    (line,) = axis.plot(places, [record["draw_exact"] for record in records], style, marker=".", label=label)
    low, high = zip(*map(interval, records), strict=True) if records else ((), ())
    axis.fill_between(places, low, high, color=line.get_color(), alpha=0.08, linewidth=0)


def main() -> None:
    """Draw what is missing; the picture and the best of each sampler."""
    case = tyro.cli(Case)
    case.out.mkdir(parents=True, exist_ok=True)
    records = measure(case)
    plot(records, case.out / "quality.png")
    table = Table("task", "setting", "exactly right")
    for record in records:
        point = record["point"]
        if "setting" in point:
            table.add_row(point["task"], point["setting"], f"{record[point['task'] + '_exact']:.1%}")
    if table.rows:
        Console(stderr=True).print(table)
    summary = {name: found for name in SAMPLERS if (found := best_of(records, name))}
    Console().print_json(json.dumps({"benchmark": "quality", "best": summary}), indent=None)


if __name__ == "__main__":
    main()
