"""A random network of a given shape behind the engine, and the machine's own limits, for the other scripts here."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from monoformer.autoencoder import Moments
from monoformer.config.diffusion import DDPMConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.device import choose, has_bf16_units, host_peak, keep_freed_memory, matrix_speed, synchronize
from monoformer.document import Document, Text
from monoformer.generate.engine import Engine
from monoformer.model.monoformer import MonoFormer
from monoformer.model.packed import can_pack, pack
from monoformer.pretrained import Pretrained
from monoformer.randomness import generator
from monoformer.tokenizer import Tokenizer

WORDS = "a small red circle above a large blue square, on grey"
RARE = "fhjkptwxz"
"""Letters that no merge of the tokenizer knows: one token each."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The official code's network (MonoFormer: a projected time token, learned variance), with random weights."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    mlp_width: int = 1408
    vocabulary: int = 8192
    context: int = 1024
    latent: int = 32
    """Side of the 4-channel latent of a picture."""
    patch: int = 2
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and arithmetic; auto takes what is faster on the device, as the pipeline does."""
    packed: bool = True
    """On a CPU, weights a second time in the order of its products, as the pipeline has them."""
    compile: bool = False
    """Compile the decoding of text first."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision as a type."""
        bf16 = has_bf16_units(choose(self.device)) if self.precision == "auto" else self.precision == "bf16"
        return torch.bfloat16 if bf16 else torch.float32

    @property
    def patches(self) -> int:
        """Tokens of a picture, but for the time's."""
        return (self.latent // self.patch) ** 2


class Latents:
    """Latents already cached, random: what a run on encoded pictures reads. Nothing is decoded."""

    channels = 4
    down = 1
    samples = False

    def __init__(self, side: int) -> None:
        self.side = side

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents for so many pictures."""
        shape = (len(pixels), 4, self.side, self.side)
        return torch.randn(shape, generator=generator(0, "latents")).to(pixels.device)

    def moments(self, pixels: torch.Tensor) -> Moments:
        """The same; no deviation."""
        return self.encode(pixels), None

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Three of the channels as pixels."""
        return latents[:, :3].to(torch.uint8)


def build_pretrained(shape: Shape) -> Pretrained:
    """Random weights; the image head is random too, so that samplers have work to do."""
    config = ModelConfig(
        width=shape.width, layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads, mlp_width=shape.mlp_width,
        vocabulary=shape.vocabulary, context=shape.context, patch=shape.patch, channels=4, time="projected_token",
        learned_variance=True, qk_norm=False, image_sizes=((shape.latent, shape.latent),),
    )  # fmt: skip
    model, random = MonoFormer(config), generator(0, "weights")
    model.initialize(random)
    with torch.no_grad():
        model.image_head.linear.weight.copy_(torch.randn(model.image_head.linear.weight.shape, generator=random) * 0.02)
    model.to(choose(shape.device), shape.dtype).eval()
    return Pretrained(
        model=model,
        tokenizer=Tokenizer.train([WORDS], vocabulary=300),
        diffusion=DDPMConfig(variance="learned"),
        generate=GenerateConfig(sampler="ddpm"),
    )


def build_engine(shape: Shape, *, slots: int, deterministic: bool = False) -> Engine:
    """An engine around random weights."""
    made = build_pretrained(shape)
    if made.model.tokens.weight.device.type == "cpu":  # as the pipeline does
        keep_freed_memory()
        if shape.packed and can_pack(made.model.tokens.weight.dtype):
            pack(made.model)
    return Engine(made, Latents(shape.latent), slots=slots, deterministic=deterministic, compile=shape.compile)


def prompt(tokens: int, *, number: int = 0) -> Document:
    """A text of so many tokens; another one for another number."""
    letters = generator(number, "prompt")
    chosen = torch.randint(len(RARE), (tokens,), generator=letters).tolist()
    return Document((Text("".join(RARE[letter] for letter in chosen)),))


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


def matrix_peak(shape: Shape) -> float:
    """Operations a second of matrix products in the shape's precision."""
    return matrix_speed(choose(shape.device), shape.dtype, size=2048, seconds=1.0) * 1e9


def memory_speed(device: torch.device) -> float:
    """Bytes a second that can be read: the best of ten sums over 256 MB."""
    numbers = torch.ones(64 * 2**20, device=device)
    numbers.sum()
    return numbers.numel() * 4 / min(timed(numbers.sum, device) for _ in range(10))


def peak_memory(device: torch.device) -> int:
    """Most bytes held at once: of the GPU's memory where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(host_peak())


def ratios(found: dict[str, float], peer: tuple[float, ...], *, names: str) -> dict[str, float]:
    """Each figure over the peer's, which are given in the same order. Raises ValueError for another number of them."""
    if peer and len(peer) != len(found):
        raise ValueError(f"--{names} must be {len(found)} figures, one for each of {', '.join(found)}")
    return {name: value / own for (name, value), own in zip(found.items(), peer, strict=True)} if peer else {}


def report(title: str, result: dict[str, Any], case: Any) -> None:
    """A table, then one line of JSON."""
    rounded = {name: _rounded(value) for name, value in result.items()}
    table = Table("measure", "value", title=title)
    for name, value in rounded.items():
        table.add_row(name, str(value).strip("{}"))
    Console().print(table)
    print(json.dumps({**rounded, "case": asdict(case)}))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(own) for name, own in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value
