"""How fast the engine draws, as a share of the machine's matrix products and beside a pass that recomputes the prompt.

python benchmarks/denoise.py --pictures 4 --steps 25 --guidance 2.5
python benchmarks/denoise.py --peer 0.8              # a peer's pictures a second, measured beside this

A drawing re-reads only the image's own tokens against the cached prompt; `recomputed` reads prompt and image anew in
every evaluation, as the official code does. A table, then one line of JSON.
"""

from dataclasses import dataclass, replace

import torch
import tyro
from network import PROMPT, Shape, build_engine, matrix_weights, report, timed

from monoformer.batch import Layout
from monoformer.config.generate import GenerateConfig
from monoformer.doctor import matrix_speed
from monoformer.document import Document, Text
from monoformer.generate.engine import Engine
from monoformer.generate.passes import Context, denoise, read
from monoformer.generate.session import Request


@dataclass(frozen=True, kw_only=True)
class Case(Shape):
    """Pictures that are drawn together."""

    pictures: int = 4
    steps: int = 25
    guidance: float = 2.5
    repeats: int = 1
    """How many times the prompt is repeated: a longer one is where the cached prefix pays."""
    peer: float = 0.0
    """A peer's pictures a second on this machine; the ratio is printed."""


def draw(engine: Engine, case: Case) -> None:
    """Draw all pictures."""
    settings = GenerateConfig(steps=case.steps, guidance=case.guidance)
    prompt = Document((Text(" ".join([PROMPT] * case.repeats)),))
    requests = [
        Request(document=prompt, want="image", settings=replace(settings, seed=n)) for n in range(case.pictures)
    ]
    engine.run(requests)


def recompute(engine: Engine, case: Case) -> None:
    """One evaluation of all pictures that reads their prompts anew."""
    document = Document((Text(" ".join([PROMPT] * case.repeats)),))
    layouts: list[Layout] = [engine.sequencer.prompt(document, opening="image")] * case.pictures
    contexts = [Context(slot) for slot in range(case.pictures)]
    read(engine.network, contexts, layouts)
    side = case.size
    x = torch.zeros(case.pictures, 3, side, side, device=engine.network.device)
    denoise(engine.network, contexts, x, torch.ones(case.pictures, device=x.device), engine.sequencer.grid(side, side))


def main() -> None:
    """Time the drawing."""
    case = tyro.cli(Case)
    contexts = case.pictures * (1 if case.guidance == 1 else 2)
    engine = build_engine(case, slots=max(2, contexts))
    device, model = engine.network.device, engine.network.model
    draw(engine, replace(case, steps=2))
    seconds = timed(lambda: draw(engine, case), device)
    recompute(engine, case)
    again = min(timed(lambda: recompute(engine, case), device) for _ in range(3))
    patches = (case.size // case.patch) ** 2
    attention = 4 * case.width * case.layers * patches * (patches + len(PROMPT) * case.repeats // 4)
    flops = case.steps * contexts * (2 * matrix_weights(model) * patches + attention)
    peak = matrix_speed(device, torch.bfloat16 if case.bf16 else torch.float32, size=2048, seconds=1.0) * 1e9
    result = {
        "pictures_per_second": case.pictures / seconds,
        "milliseconds_per_evaluation": seconds / case.steps * 1e3,
        "matrix_peak_share": flops / seconds / peak,
        "peak_gflops": peak / 1e9,
        "recomputed_milliseconds_per_evaluation": again * contexts / case.pictures * 1e3,
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }
    result["speed_up_over_recomputing"] = (
        result["recomputed_milliseconds_per_evaluation"] / result["milliseconds_per_evaluation"]
    )
    if case.peer:
        result["ratio_to_peer"] = result["pictures_per_second"] / case.peer
    report("drawing", result, case)


if __name__ == "__main__":
    main()
