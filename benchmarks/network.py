"""A random network of a given shape behind the engine, and the machine's own limits, for decode.py and denoise.py."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from monoformer.autoencoder import Pixels
from monoformer.config.diffusion import FlowConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.device import choose, synchronize
from monoformer.generate.engine import Engine
from monoformer.model.monoformer import MonoFormer
from monoformer.pretrained import Pretrained
from monoformer.randomness import generator
from monoformer.tokenizer import Tokenizer

PROMPT = "a small red circle above a large blue square, on grey"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A network with random weights."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    mlp_width: int = 1408
    vocabulary: int = 8192
    context: int = 1024
    size: int = 64
    """Side of a picture in pixels."""
    patch: int = 8
    device: str = "auto"
    bf16: bool = False
    """Weights, cache and arithmetic in bfloat16."""


def build_pretrained(shape: Shape) -> Pretrained:
    """Random weights; the image head is random too, so that samplers have work to do."""
    config = ModelConfig(
        width=shape.width, layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads, mlp_width=shape.mlp_width,
        vocabulary=shape.vocabulary, context=shape.context, patch=shape.patch, time="add",
        image_sizes=((shape.size, shape.size),),
    )  # fmt: skip
    model = MonoFormer(config)
    model.initialize(generator(0, "weights"))
    model.to(choose(shape.device), torch.bfloat16 if shape.bf16 else torch.float32).eval()
    return Pretrained(
        model=model,
        tokenizer=Tokenizer.train([PROMPT], vocabulary=300),
        diffusion=FlowConfig(),
        generate=GenerateConfig(),
    )


def build_engine(shape: Shape, *, slots: int) -> Engine:
    """An engine around random weights."""
    return Engine(build_pretrained(shape), Pixels(), slots=slots)


def matrix_weights(model: MonoFormer) -> int:
    """Weights of the blocks' matrices: those that every token passes through."""
    return sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("transformer."))


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `work` takes, all of it done."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def memory_speed(device: torch.device) -> float:
    """Bytes a second that can be read: the best of ten sums over 256 MB."""
    numbers = torch.ones(64 * 2**20, device=device)
    numbers.sum()
    return numbers.numel() * 4 / min(timed(numbers.sum, device) for _ in range(10))


def report(title: str, result: dict[str, float], case: Any) -> None:
    """A table, then one line of JSON."""
    table = Table("measure", "value", title=title)
    for name, value in result.items():
        table.add_row(name, f"{value:,.4g}")
    Console().print(table)
    print(json.dumps({**{name: float(f"{value:.5g}") for name, value in result.items()}, "case": asdict(case)}))
