"""How fast the engine writes, as a share of what reading the weights once a pass would allow.

python benchmarks/decode.py                                     # 125M parameters, batch 1 and 8, 256 new tokens
python benchmarks/decode.py --repeats 5                         # the medians of five turns of each
python benchmarks/decode.py --compile                           # with decoding compiled first
python benchmarks/decode.py --batches 16 --tokens 128 --peer 410      # a peer's tokens a second, measured elsewhere

Greedy, random weights. The peer is `generate` of transformers on a LLaMA of the same shape, in turn with ours. A table,
then one line of JSON.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

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
    repeats: int = 3
    """Turns; the medians count."""
    peer: tuple[float, ...] = ()
    """A peer's tokens a second on this machine, one for each of the batches; else transformers' are measured."""


def write(engine: Engine, case: Case, *, sessions: int) -> None:
    """Serve the sessions; each writes all its tokens."""
    endless = ((engine.tokenizer.eos, -1e9),)
    settings = GenerateConfig(max_tokens=case.tokens, logit_bias=endless)
    for number in range(sessions):
        engine.add(Request(document=prompt(case.prompt, number=number), want="text", settings=settings))
    waiting = list(engine.waiting)
    while engine.active or engine.waiting:
        engine.step()
    assert all(session.written == case.tokens for session in waiting), "a session ended early"


def build_peer(case: Case, device: torch.device) -> Callable[[int, int], object]:
    """transformers' `generate` for (rows, new tokens)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=case.width, num_hidden_layers=case.layers, num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads, intermediate_size=case.mlp_width, vocab_size=case.vocabulary,
        max_position_embeddings=case.context, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device, case.dtype).eval()

    def generate(rows: int, tokens: int) -> object:
        ids = torch.ones(rows, case.prompt, dtype=torch.long, device=device)
        return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)

    return generate


def main() -> None:
    """Time the writing beside the memory's speed."""
    case = tyro.cli(Case)
    engine = build_engine(case, slots=max(2, *case.batches), deterministic=case.deterministic)
    model, device = engine.network.model, engine.network.device
    read = (matrix_weights(model) + model.config.vocabulary * model.config.width) * case.dtype.itemsize  # text head too
    speed = memory_speed(device)
    beside = None if case.peer else build_peer(case, device)
    tokens: dict[str, float] = {}
    peers: dict[str, float] = {}
    for sessions in case.batches:
        ours: list[float] = []
        theirs: list[float] = []
        for turn in range(case.repeats + 1):
            count = case.tokens if turn else 4  # the first turn warms up
            ours.append(timed(lambda n=sessions, c=count: write(engine, replace(case, tokens=c), sessions=n), device))  # type: ignore[misc]
            if beside is not None:
                theirs.append(timed(lambda n=sessions, c=count: beside(n, c), device))  # type: ignore[misc]
        tokens[str(sessions)] = sessions * case.tokens / median(ours[1:])
        if theirs:
            peers[str(sessions)] = sessions * case.tokens / median(theirs[1:])
    decoder = engine.network.decoder
    share = {name: read * rate / int(name) / speed for name, rate in tokens.items()}
    result = {
        "tokens_per_second": tokens,
        "bandwidth_share": share,
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
