"""What a model knows of a picture at each share of noise, beside knowing only the mean picture.

python benchmarks/levels.py --model MODEL                                  # held-out scenes of the model's own data
python benchmarks/levels.py --model MODEL --times 0.9 0.5 0.1 --count 16

A denoiser whose error is above that of the mean picture near the noise begins every drawing with a wrong picture, and
its average, a scene's background, with it. A network that is asked for eps must pass the noise on unchanged there: an
error of eps is one of the picture times sigma / alpha. A table, then one line of JSON.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from monoformer.card import read_card
from monoformer.data.scenes import Scenes, draw
from monoformer.document import Document, Text
from monoformer.evaluate.material import scenes_of
from monoformer.generate.passes import Context, denoise, read
from monoformer.pipeline import Pipeline
from monoformer.randomness import generator


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is asked."""

    model: str
    """Model folder trained on drawn scenes; its card says which."""
    times: tuple[float, ...] = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
    """Times, from 1 (noise) down to 0 (the picture)."""
    count: int = 24
    """Held-out scenes, each behind its caption, noised once at every time."""
    seed: int = 0
    device: str = "auto"


def main(case: Case) -> None:
    """Print the table."""
    pipeline = Pipeline.from_pretrained(case.model, device=case.device, slots=case.count)
    trained = read_card(pipeline.card)
    data = scenes_of(None if trained is None else trained.data, pipeline, name="levels")
    scenes = Scenes(data, split="test", seed=case.seed)
    shown = [scenes.drawing(i) for i in range(case.count)]
    network = pipeline.engine.network
    clean = network.autoencoder.encode(torch.stack([draw(one.scene, data.size) for one in shown]).to(network.device))
    contexts = read_captions(pipeline, [one.caption for one in shown])
    found = [at_time(pipeline, contexts, clean, time, seed=case.seed) for time in track(case.times, "denoising")]
    print_table(found)
    print(json.dumps({"model": case.model, "count": case.count, "seed": case.seed, "levels": found}))


def read_captions(pipeline: Pipeline, captions: list[str]) -> list[Context]:
    """Each caption read as a prompt that a picture follows, in a slot of its own."""
    engine, contexts = pipeline.engine, list[Context]()
    for caption in captions:
        layout = engine.sequencer.prompt(Document((Text(caption, role="user"),)))
        layout.add_token(engine.sequencer.tokenizer.boi)
        context = Context(engine.reader.slots.take())
        read(engine.network, [context], [layout])
        contexts.append(context)
    return contexts


def at_time(pipeline: Pipeline, contexts: list[Context], clean: Tensor, time: float, *, seed: int) -> dict[str, Any]:
    """Mean squared errors of the estimated picture, of its average, and of the mean picture, at one time."""
    network = pipeline.engine.network
    path, t = network.objective.path, torch.full((len(clean),), time, device=clean.device)
    alpha, sigma = float(path.alpha(t[:1])), float(path.sigma(t[:1]))
    noise = torch.randn(clean.shape, generator=generator(seed, "levels", repr(time))).to(clean.device)
    down = network.autoencoder.down
    grid = pipeline.engine.sequencer.grid(clean.shape[-2] * down, clean.shape[-1] * down)
    guesses = denoise(network, contexts, alpha * clean + sigma * noise, t, grid)
    error = torch.stack([guess.x_0 for guess in guesses]) - clean
    known = clean - clean.mean(dim=(0, 2, 3), keepdim=True)
    return {
        "time": time,
        "alpha": alpha,
        "picture": float(error.square().mean()),
        "average": float(error.mean(dim=(2, 3)).square().mean()),
        "mean_picture": float(known.square().mean()),
        "eps": float(error.square().mean()) * (alpha / sigma) ** 2,
    }


def print_table(found: list[dict[str, Any]]) -> None:
    """One row a time."""
    table = Table("time", "alpha", "error of the picture", "of its average", "of the mean picture", "as one of eps")
    for one in found:
        values = [one[name] for name in ("alpha", "picture", "average", "mean_picture", "eps")]
        table.add_row(f"{one['time']:g}", *(f"{value:.4g}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
