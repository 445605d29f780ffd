"""How fast one training step is, as a share of what this machine's matrix products could do.

python benchmarks/train_step.py                   # width 512, 8 layers, four sequences of 17 text + 256 image tokens
python benchmarks/train_step.py --width 256 --layers 6 --precision fp32

A step is everything: noising, forward, backward, clipping, AdamW, EMA. The floating-point operations counted are those
that must be done: 6 for each weight of a matrix and each token that the matrix must see (the text head only labelled
tokens, the image head only image tokens, modulation once an image), and attention over visible pairs only. The peak is
measured in the same run, in the step's own precision; both precisions are printed. A table, then one line of JSON.
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from monoformer.autoencoder import Moments
from monoformer.batch import IGNORED, Batch, ImageSlots
from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.diffusion import FlowConfig
from monoformer.config.model import ModelConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import AdamWConfig, TrainConfig
from monoformer.device import choose, host_peak, matrix_speed, synchronize
from monoformer.diffusion.objectives import build_objective
from monoformer.model.monoformer import MonoFormer
from monoformer.randomness import generator
from monoformer.train.operations import Operations, seen_in
from monoformer.train.trainer import Parts, Trainer


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training step to be timed."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    mlp_width: int = 1408
    vocabulary: int = 8192
    sequences: int = 4
    text: int = 17
    """Text tokens in a sequence, bos, boi, eoi and eos included."""
    latent: int = 32
    """Side of the 4-channel latent."""
    patch: int = 2
    time: Literal["token", "add", "adaln"] = "add"
    precision: Literal["auto", "fp32", "bf16"] = "bf16"
    steps: int = 10
    device: str = "auto"


class Latents:
    """Latents already cached: what a run on encoded pictures reads."""

    channels = 4
    down = 1
    samples = False

    def __init__(self, side: int) -> None:
        self.side = side

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """The cached latents, random here."""
        shape = (len(pixels), 4, self.side, self.side)
        return torch.randn(shape, generator=generator(0, "latents")).to(pixels.device)

    def moments(self, pixels: torch.Tensor) -> Moments:
        """The cached latents; no deviation."""
        return self.encode(pixels), None

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Not timed."""
        return latents.to(torch.uint8)


def make_batch(case: Case) -> Batch:
    """Rows of `text` tokens with one target image before the last two (eoi, eos)."""
    side = case.latent // case.patch
    patches, before = side * side, case.text - 2
    length = case.text + patches
    random = generator(0, "batch")
    shape = (case.sequences, length)
    ids = torch.randint(0, case.vocabulary, shape, generator=random)
    end = torch.arange(1, length + 1).repeat(case.sequences, 1)
    end[:, before : before + patches] = before + patches
    labels = torch.full(shape, IGNORED)
    labels[:, : before - 1] = ids[:, 1:before]
    labels[:, -2] = ids[:, -1]
    slots = ImageSlots(
        pixels=torch.zeros(case.sequences, 3, case.latent, case.latent, dtype=torch.uint8),
        document=torch.arange(case.sequences),
        number=torch.ones(case.sequences, dtype=torch.long),
        picture=torch.arange(case.sequences),
        row=torch.arange(case.sequences),
        start=torch.full((case.sequences,), before),
        noised=torch.ones(case.sequences, dtype=torch.bool),
        draw=torch.zeros(case.sequences, dtype=torch.long),
        noise_limit=torch.ones(case.sequences),
        grid=(side, side),
    )
    positions = torch.arange(length).repeat(case.sequences, 1)
    zeros = torch.zeros(shape, dtype=torch.long)
    return Batch(
        ids=ids, positions=positions, document=zeros, source=zeros, end=end, private=zeros, labels=labels,
        images=(slots,),
    )  # fmt: skip


def peak_memory(device: torch.device) -> int:
    """Most bytes held at once: of the GPU's memory where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return round(host_peak())


def build_trainer(case: Case) -> Trainer:
    """The trainer of a case, with random weights."""
    device = choose(case.device)
    model_config = ModelConfig(
        width=case.width, layers=case.layers, heads=case.heads, kv_heads=case.kv_heads, mlp_width=case.mlp_width,
        vocabulary=case.vocabulary, patch=case.patch, channels=4, time=case.time, qk_norm=False,
        image_sizes=((case.latent, case.latent),),
    )  # fmt: skip
    train = TrainConfig(optimizer=AdamWConfig(), precision=case.precision, schedule="constant", warmup=1)
    latents = AutoencoderConfig(path="latents at hand")
    config = RunConfig(
        autoencoder=latents, model=model_config, diffusion=FlowConfig(prediction="velocity"), train=train
    )
    model = MonoFormer(model_config)
    model.initialize(generator(0, "weights"))
    parts = Parts(
        config=config,
        model=model.to(device),
        objective=build_objective(config.diffusion),
        autoencoder=Latents(case.latent),
        loader=None,  # type: ignore[arg-type]  # the step alone is timed
        device=device,
    )
    return Trainer(parts)


def main() -> None:
    """Time the step and print it beside the peak."""
    case = tyro.cli(Case)
    trainer, batch = build_trainer(case), make_batch(case)
    device, model = trainer.parts.device, trainer.model
    for _ in range(3):
        trainer.train_step([batch])
    times: list[float] = []
    for _ in range(case.steps):
        started = time.perf_counter()
        trainer.train_step([batch])
        synchronize(device)
        times.append(time.perf_counter() - started)
    seconds = sorted(times)[len(times) // 2]
    peaks = {name: matrix_speed(device, dtype, size=2048, seconds=1.0) for name, dtype in
             (("bf16", torch.bfloat16), ("fp32", torch.float32))}  # fmt: skip
    used = "bf16" if trainer.bf16 else "fp32"
    speed = Operations(model).count(seen_in(batch)) / seconds / 1e9
    result = {
        "tokens_per_second": round(batch.ids.numel() / seconds, 1),
        "matrix_peak_share": round(speed / peaks[used], 4),
        "best_matrix_peak_share": round(speed / max(peaks.values()), 4),
        "gflops_per_second": round(speed, 1),
        "peak_bf16": round(peaks["bf16"], 1),
        "peak_fp32": round(peaks["fp32"], 1),
        "precision": used,
        "median_step_seconds": round(seconds, 4),
        "fastest_step_seconds": round(min(times), 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_memory_bytes": peak_memory(device),
    }
    table = Table("measure", "value", title="one training step")
    for name, value in result.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int | float) else value)
    Console().print(table)
    print(json.dumps({**result, "case": asdict(case)}))


if __name__ == "__main__":
    main()
