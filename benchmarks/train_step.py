"""How fast one training step is, as a share of what this machine's matrix products could do.

python benchmarks/train_step.py                   # width 512, 8 layers, four sequences of 17 text + 256 image tokens
python benchmarks/train_step.py --width 256 --layers 6 --precision fp32
python benchmarks/train_step.py --peer-tokens 1150        # a peer's tokens a second, measured beside this

A step is everything: noising, forward, backward, clipping, AdamW, EMA. The floating-point operations counted are those
that must be done: 6 for each weight of a matrix and each token that the matrix must see (the text head only labelled
tokens, the image head only image tokens, modulation once an image), and attention over visible pairs only. The peak is
measured in the same run, in the step's own precision; both precisions are printed. A table, then one line of JSON.
"""

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from network import Latents, peak_memory, report

from monoformer.batch import IGNORED, Batch, ImageSlots
from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.diffusion import FlowConfig
from monoformer.config.model import ModelConfig
from monoformer.config.parallel import Checkpointing, ParallelConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import AdamWConfig, TrainConfig
from monoformer.device import choose, keep_freed_memory, matrix_speed, synchronize
from monoformer.diffusion.objectives import build_objective
from monoformer.model.monoformer import MonoFormer
from monoformer.randomness import generator
from monoformer.train.operations import Operations, seen_in
from monoformer.train.parallel import ALONE, spread
from monoformer.train.precision import computes_in_bf16
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
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast; auto takes what is faster on the device, as a run does."""
    checkpointing: Checkpointing = "none"
    """What blocks compute again in the backward pass."""
    compile: bool = False
    """Whether blocks are compiled; the steps before the timed ones wait for the compiler."""
    steps: int = 10
    device: str = "auto"
    peer_tokens: float = 0.0
    """A peer's tokens a second on this machine; the ratio is printed."""


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


def build_trainer(case: Case) -> Trainer:
    """The trainer of a case, with random weights."""
    device = choose(case.device)
    model_config = ModelConfig(
        width=case.width, layers=case.layers, heads=case.heads, kv_heads=case.kv_heads, mlp_width=case.mlp_width,
        vocabulary=case.vocabulary, patch=case.patch, channels=4, time=case.time, qk_norm=False,
        image_sizes=((case.latent, case.latent),),
    )  # fmt: skip
    train = TrainConfig(
        rows=case.sequences, optimizer=AdamWConfig(), precision=case.precision, schedule="constant", warmup=1,
        parallel=ParallelConfig(checkpointing=case.checkpointing, compile=case.compile),
    )  # fmt: skip
    latents = AutoencoderConfig(path="latents at hand")
    config = RunConfig(
        autoencoder=latents, model=model_config, diffusion=FlowConfig(prediction="velocity"), train=train
    )
    model = MonoFormer(model_config)
    model.initialize(generator(0, "weights"))
    spread(model, train.parallel, ALONE, device=device, bf16=computes_in_bf16(train, device))
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
    keep_freed_memory()  # as every run does
    trainer, batch = build_trainer(case), make_batch(case)
    device, model = trainer.parts.device, trainer.model
    start_memory = peak_memory(device)
    for _ in range(3):
        trainer.train_step([batch])
    times: list[float] = []
    for _ in range(case.steps):
        started = time.perf_counter()
        trainer.train_step([batch])
        synchronize(device)
        times.append(time.perf_counter() - started)
    memory, seconds = peak_memory(device), sorted(times)[len(times) // 2]
    peaks = {name: matrix_speed(device, dtype, size=2048, seconds=1.0) for name, dtype in
             (("bf16", torch.bfloat16), ("fp32", torch.float32))}  # fmt: skip
    used = "bf16" if trainer.bf16 else "fp32"
    speed = Operations(model).count(seen_in(batch)) / seconds / 1e9
    result: dict[str, Any] = {
        "tokens_per_second": batch.ids.numel() / seconds,
        "matrix_peak_share": speed / peaks[used],
        "best_matrix_peak_share": speed / max(peaks.values()),
        "gflops_per_second": speed,
        "peak_bf16": peaks["bf16"],
        "peak_fp32": peaks["fp32"],
        "precision": used,
        "median_step_seconds": seconds,
        "fastest_step_seconds": min(times),
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_memory_bytes": memory,
        "start_memory_bytes": start_memory,
    }
    if case.peer_tokens:
        result["ratio_to_peer"] = result["tokens_per_second"] / case.peer_tokens
    report("one training step", result, case)


if __name__ == "__main__":
    main()
