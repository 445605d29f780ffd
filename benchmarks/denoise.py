"""How fast the engine draws, as a share of the machine's matrix products.

python benchmarks/denoise.py               # one picture; 8 of one prompt; 8 of different ones; one of a long prompt
python benchmarks/denoise.py --cases one --peer-seconds 4.2         # a peer's seconds a picture, measured beside this

Twenty steps with guidance, network and prompt as in the official code, random weights, no autoencoder. The operations
counted are those that must be done: the pictures' tokens in every step behind each of their two contexts, and each
distinct prompt once. A table, then one line of JSON.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import tyro
from network import Shape, build_engine, matrix_peak, matrix_weights, prompt, ratios, report, timed

from monoformer.config.generate import GenerateConfig
from monoformer.generate.engine import Engine
from monoformer.generate.session import Request

Name = Literal["one", "same", "different", "long"]


@dataclass(frozen=True, kw_only=True)
class Case(Shape):
    """What is drawn."""

    cases: tuple[Name, ...] = ("one", "same", "different", "long")
    """One picture; several of one prompt, or of different ones; one picture of a long prompt."""
    pictures: int = 8
    """Pictures where there are several."""
    steps: int = 20
    guidance: float = 2.5
    tokens: int = 13
    """Text tokens of a prompt."""
    long_tokens: int = 400
    """Text tokens of the long prompt."""
    deterministic: bool = False
    """Passes padded to fixed shapes."""
    repeats: int = 1
    """How often each case is timed; the fastest counts."""
    peer_seconds: tuple[float, ...] = ()
    """A peer's seconds a picture on this machine, one for each of the cases."""


def requests(name: Name, case: Case) -> list[Request]:
    """The pictures of one case."""
    settings = GenerateConfig(sampler="ddpm", steps=case.steps, guidance=case.guidance)
    count = case.pictures if name in ("same", "different") else 1
    tokens = case.long_tokens if name == "long" else case.tokens
    return [
        Request(
            document=prompt(tokens, number=seed if name == "different" else 0),
            want="image",
            settings=replace(settings, seed=seed),
        )
        for seed in range(count)
    ]


def count_flops(engine: Engine, wanted: list[Request], case: Case) -> float:
    """Operations that drawing these must do."""
    weights, width, layers = matrix_weights(engine.network.model), case.width, case.layers
    tokens = case.patches + 1
    total = 0.0
    lengths = {r.document: len(engine.sequencer.prompt(r.document, opening="image")) for r in wanted}
    for request in wanted:
        seen = [lengths[request.document]] + ([2] if case.guidance != 1 else [])  # bos boi: the null context
        total += sum(
            case.steps * tokens * (2 * weights + 4 * width * layers * (before + tokens)) for before in seen
        )  # fmt: skip
    return total + 2 * weights * sum(lengths.values())


def fresh(engine: Engine, wanted: list[Request]) -> Callable[[], object]:
    """Draw as if nothing of the prompts had been read before."""

    def draw() -> object:
        engine.reader.slots.forget()
        return engine.run(wanted)

    return draw


def main() -> None:
    """Time the cases."""
    case = tyro.cli(Case)
    engine = build_engine(case, slots=2 * case.pictures, deterministic=case.deterministic)
    device = engine.network.device
    fresh(engine, requests("one", replace(case, steps=2)))()
    peak = matrix_peak(case)
    seconds: dict[str, float] = {}
    share: dict[str, float] = {}
    for name in case.cases:
        wanted = requests(name, case)
        spent = min(timed(fresh(engine, wanted), device) for _ in range(case.repeats))
        seconds[name] = spent / len(wanted)
        share[name] = count_flops(engine, wanted, case) / spent / peak
    result = {
        "seconds_per_picture": seconds,
        "matrix_peak_share": share,
        "peer_over_ours": {k: 1 / v for k, v in ratios(seconds, case.peer_seconds, names="peer-seconds").items()},
        "pictures_per_second": {name: 1 / spent for name, spent in seconds.items()},
        "precision": str(case.dtype).removeprefix("torch."),
        "peak_gflops": peak / 1e9,
        "parameters": sum(p.numel() for p in engine.network.model.parameters()),
    }
    report("drawing", result, case)


if __name__ == "__main__":
    main()
