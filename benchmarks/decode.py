"""How fast the engine writes, as a share of what reading the weights once a token would allow.

python benchmarks/decode.py --sessions 1
python benchmarks/decode.py --sessions 16 --tokens 128 --peer 410     # a peer's tokens a second, measured beside this

A table, then one line of JSON.
"""

from dataclasses import dataclass, replace

import tyro
from network import PROMPT, Shape, build_engine, matrix_weights, memory_speed, report, timed

from monoformer.config.generate import GenerateConfig
from monoformer.document import Document, Text
from monoformer.generate.engine import Engine
from monoformer.generate.session import Request


@dataclass(frozen=True, kw_only=True)
class Case(Shape):
    """Sessions that write together."""

    sessions: int = 8
    tokens: int = 64
    """Tokens that each session writes (random weights seldom end a text)."""
    peer: float = 0.0
    """A peer's tokens a second on this machine; the ratio is printed."""


def write(engine: Engine, case: Case) -> int:
    """Serve the sessions; tokens written."""
    settings = GenerateConfig(max_tokens=case.tokens, temperature=1.0)
    prompt = Document((Text(PROMPT),))
    for number in range(case.sessions):
        engine.add(Request(document=prompt, want="text", settings=replace(settings, seed=number)))
    sessions = list(engine.waiting)
    while engine.active or engine.waiting:
        engine.step()
    return sum(session.written for session in sessions)


def main() -> None:
    """Time the writing beside the memory's speed."""
    case = tyro.cli(Case)
    engine = build_engine(case, slots=max(2, case.sessions))
    write(engine, replace(case, tokens=4))
    counted: list[int] = []
    seconds = timed(lambda: counted.append(write(engine, case)), engine.network.device)
    model = engine.network.model
    size = 2 if case.bf16 else 4
    read = (matrix_weights(model) + model.config.vocabulary * model.config.width) * size  # once a pass, text head too
    passes = counted[0] / case.sessions
    speed = memory_speed(engine.network.device)
    result = {
        "tokens_per_second": counted[0] / seconds,
        "milliseconds_per_pass": seconds / passes * 1e3,
        "memory_speed_share": read * passes / seconds / speed,
        "memory_bytes_per_second": speed,
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }
    if case.peer:
        result["ratio_to_peer"] = result["tokens_per_second"] / case.peer
    report("writing", result, case)


if __name__ == "__main__":
    main()
