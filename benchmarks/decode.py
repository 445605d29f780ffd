"""How fast the engine writes, as a share of what reading the weights once a pass would allow.

python benchmarks/decode.py                                     # 125M parameters, batch 1 and 8, 256 new tokens
python benchmarks/decode.py --batches 16 --tokens 128 --peer 410      # a peer's tokens a second, measured beside this

Greedy, random weights. A table, then one line of JSON.
"""

from dataclasses import dataclass, replace

import tyro
from network import Shape, build_engine, matrix_weights, memory_speed, prompt, ratios, report, timed

from monoformer.config.generate import GenerateConfig
from monoformer.generate.engine import Engine
from monoformer.generate.session import Request


@dataclass(frozen=True, kw_only=True)
class Case(Shape):
    """Sessions that write together."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 2048
    vocabulary: int = 32000
    batches: tuple[int, ...] = (1, 8)
    """Sessions that write together."""
    tokens: int = 256
    """Tokens that each session writes."""
    prompt: int = 13
    """Text tokens of a prompt."""
    deterministic: bool = False
    """Passes padded to fixed shapes."""
    peer: tuple[float, ...] = ()
    """A peer's tokens a second on this machine, one for each of the batches."""


def write(engine: Engine, case: Case, *, sessions: int) -> int:
    """Serve the sessions; tokens written."""
    endless = ((engine.tokenizer.eos, -1e9),)
    settings = GenerateConfig(max_tokens=case.tokens, logit_bias=endless)
    for number in range(sessions):
        engine.add(Request(document=prompt(case.prompt, number=number), want="text", settings=settings))
    waiting = list(engine.waiting)
    while engine.active or engine.waiting:
        engine.step()
    return sum(session.written for session in waiting)


def main() -> None:
    """Time the writing beside the memory's speed."""
    case = tyro.cli(Case)
    engine = build_engine(case, slots=max(2, *case.batches), deterministic=case.deterministic)
    model, device = engine.network.model, engine.network.device
    read = (matrix_weights(model) + model.config.vocabulary * model.config.width) * case.dtype.itemsize  # text head too
    speed = memory_speed(device)
    tokens: dict[str, float] = {}
    share: dict[str, float] = {}
    for sessions in case.batches:
        write(engine, replace(case, tokens=4), sessions=sessions)
        counted: list[int] = []
        spent = timed(lambda n=sessions, c=counted: c.append(write(engine, case, sessions=n)), device)  # type: ignore[misc]
        tokens[str(sessions)] = counted[0] / spent
        share[str(sessions)] = read * counted[0] / sessions / spent / speed
    result = {
        "tokens_per_second": tokens,
        "bandwidth_share": share,
        "ratio_to_peer": ratios(tokens, case.peer, names="peer"),
        "milliseconds_per_pass": {name: int(name) / rate * 1e3 for name, rate in tokens.items()},
        "precision": str(case.dtype).removeprefix("torch."),
        "memory_bytes_per_second": speed,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    report("writing", result, case)


if __name__ == "__main__":
    main()
