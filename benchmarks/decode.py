"""How fast the engine writes, as a share of what reading the weights once a pass would allow.

python benchmarks/decode.py                                     # 125M parameters, batch 1 and 8, 256 new tokens
python benchmarks/decode.py --repeats 5                         # the medians of five turns of each
python benchmarks/decode.py --no-compile                        # without compiled decoding (docs/generate.md)
python benchmarks/decode.py --batches 16 --tokens 128 --peer 410      # a peer's tokens a second, measured elsewhere

Greedy, random weights; ours, ours compiled, the peer in turn. The peer is `generate` of transformers on a LLaMA
of the same shape, as it comes. A table, then one line of JSON: `tokens_per_second` is compiled, unless told not to be.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, TypeAlias

import torch
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
    compile: bool = True
    """Also with decoding compiled; waits for the compiler first, which is not timed but told (`warm_up`)."""
    repeats: int = 3
    """Turns; the medians count."""
    peer: tuple[float, ...] = ()
    """A peer's tokens a second on this machine, one for each of the batches; else transformers' are measured."""


Rates: TypeAlias = dict[str, dict[str, float]]
"""Tokens a second, by writer and number of sessions."""


def write(engine: Engine, case: Case, sessions: int, tokens: int) -> None:
    """Serve the sessions; each writes all its tokens."""
    endless = ((engine.tokenizer.eos, -1e9),)
    settings = GenerateConfig(max_tokens=tokens, logit_bias=endless)
    for number in range(sessions):
        engine.add(Request(document=prompt(case.prompt, number=number), want="text", settings=settings))
    waiting = list(engine.waiting)
    while engine.active or engine.waiting:
        engine.step()
    assert all(session.written == tokens for session in waiting), "a session ended early"


def build_peer(case: Case, device: torch.device) -> Callable[[int, int], object]:
    """transformers' `generate` for (rows, new tokens)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=case.width, num_hidden_layers=case.layers, num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads, intermediate_size=case.mlp_width, vocab_size=case.vocabulary,
        max_position_embeddings=case.context, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model = model.to(device, case.dtype).eval()

    def generate(rows: int, tokens: int) -> object:
        ids = torch.ones(rows, case.prompt, dtype=torch.long, device=device)
        return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)

    return generate


def time_in_turn(case: Case, writers: dict[str, Callable[[int, int], object]], device: torch.device) -> Rates:
    """Tokens a second of each writer, by sessions."""
    rates: Rates = {name: {} for name in writers}
    for sessions in case.batches:
        taken: dict[str, list[float]] = {name: [] for name in writers}
        for turn in range(case.repeats + 1):
            count = case.tokens if turn else 4  # the first turn warms up
            for name, run in writers.items():
                taken[name].append(timed(partial(run, sessions, count), device))
        for name, seconds in taken.items():
            rates[name][str(sessions)] = sessions * case.tokens / median(seconds[1:])
    return rates


def main() -> None:
    """Time the writing beside the memory's speed."""
    case = tyro.cli(Case)
    engines = {
        name: build_engine(
            replace(case, compile=name == "compiled"), slots=max(2, *case.batches), deterministic=case.deterministic
        )
        for name in (("eager", "compiled") if case.compile else ("eager",))
    }
    engine = engines["compiled" if case.compile else "eager"]
    model, device, decoder = engine.network.model, engine.network.device, engine.network.decoder
    read = (matrix_weights(model) + model.config.vocabulary * model.config.width) * case.dtype.itemsize  # text head too
    speed = memory_speed(device)
    writers: dict[str, Callable[[int, int], object]] = {n: partial(write, own, case) for n, own in engines.items()}
    if not case.peer:
        writers["peer"] = build_peer(case, device)
    rates = time_in_turn(case, writers, device)
    peers = rates.pop("peer", {})
    eager, tokens = rates["eager"], rates["compiled" if case.compile else "eager"]
    result = {
        "tokens_per_second": tokens,
        "eager_tokens_per_second": eager,
        "bandwidth_share": {name: read * rate / int(name) / speed for name, rate in tokens.items()},
        "peer_tokens_per_second": peers,
        "ratio_to_peer": ratios(tokens, case.peer or tuple(peers.values()), names="peer"),
        "milliseconds_per_pass": {name: int(name) / rate * 1e3 for name, rate in tokens.items()},
        "warm_up": "" if decoder is None else str(decoder.warmed),
        "precision": str(case.dtype).removeprefix("torch."),
        "memory_bytes_per_second": speed,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    report("writing", result, case)


if __name__ == "__main__":
    main()
