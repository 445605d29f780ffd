"""Tiny real parts for the laws: a trained tokenizer, networks in every mode, random documents, runs.

Weights are random throughout: with the zero-initialised modulation and image head as they start, most laws about
images would hold of any code.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from monoformer.autoencoder import Pixels, build_autoencoder
from monoformer.batch import Batch, Layout
from monoformer.config.data import SequenceConfig, TokenizerConfig
from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import AdamWConfig, TrainConfig
from monoformer.config.vision import VisionConfig
from monoformer.data.source import Indexed, Source
from monoformer.diffusion.objectives import build_objective
from monoformer.document import Document, Image, Role, Segment, Text
from monoformer.model.attention import dense_mask
from monoformer.model.monoformer import MonoFormer, Place
from monoformer.packing import collate
from monoformer.pretrained import Pretrained, build_sequencer
from monoformer.randomness import generator
from monoformer.sequence import Sequencer
from monoformer.tokenizer import Tokenizer
from monoformer.train.build import build_loader
from monoformer.train.freeze import freeze_text, new_rows
from monoformer.train.loop import Sample
from monoformer.train.parallel import ALONE, Ranks, spread
from monoformer.train.precision import computes_in_bf16
from monoformer.train.trainer import Parts, Trainer
from monoformer.vision import Preparation, VisionEncoder, build_vision
from tests import encoders

WORDS = ("red", "blue", "circle", "square", "left", "of", "a", "the", "large", "small", "is", "what", "moves", "seen")
SIZES = ((8, 8), (4, 8), (12, 8))
"""Heights and widths in pixels: 2x2, 1x2 and 3x2 patches of 4."""

MODES: dict[str, dict[str, Any]] = {
    "adaln": {"time": "adaln", "image_head": "dit"},
    "token": {"time": "token", "image_head": "dit", "kv_heads": 2, "qk_norm": False},
    "add": {"time": "add", "image_head": "linear", "tie_embeddings": True},
    "causal": {
        "time": "projected_token", "image_head": "linear", "image_attention": "causal", "image_positions": "none",
    },
    "unet": {"time": "add", "image_head": "linear", "image_patches": "unet", "unet_width": 8},
    "experts": {"time": "adaln", "experts": "modality", "kv_heads": 2},
    "vision": {
        "time": "token", "experts": "modality", "vision_width": encoders.WIDTH, "vision_grid": encoders.GRID,
    },
    "official": {"time": "adaln_input", "image_head": "shift", "image_positions": "every_layer", "qk_norm": False},
}  # fmt: skip
"""Together they take every value of every alternative of `ModelConfig`."""

CONTEXTS: tuple[Literal["noised", "clean_copy"], ...] = ("noised", "clean_copy")


@cache
def tokenizer() -> Tokenizer:
    """A byte-level BPE with a few merges. Shared: never change it."""
    return Tokenizer.train([" ".join(WORDS)] * 4, vocabulary=300)


def model_config(mode: str = "adaln", **changes: Any) -> ModelConfig:
    """Two layers of width 32."""
    config = ModelConfig(
        width=32, layers=2, heads=4, kv_heads=4, mlp_width=48, context=160, patch=4, image_sizes=SIZES,
        vocabulary=tokenizer().size,
    )  # fmt: skip
    return replace(config, **{**MODES[mode], **changes})


@torch.no_grad()
def randomize(model: MonoFormer, seed: int = 0) -> MonoFormer:
    """Every weight random and of a size that matters, modulation and image head too."""
    random = generator(seed, "tiny")
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=random)
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.2 * noise)
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model


def model(mode: str = "adaln", *, seed: int = 0, **changes: Any) -> MonoFormer:
    """A network with random weights."""
    with torch.random.fork_rng(devices=[]):
        network = MonoFormer(model_config(mode, **changes))
    return randomize(network, seed).eval()


def pretrained(mode: str = "adaln", *, diffusion: DiffusionConfig | None = None, **changes: Any) -> Pretrained:
    """A network with its tokenizer, four steps of Euler (DDIM on a chain), guidance 2."""
    diffusion = diffusion or FlowConfig()
    learned = learns_variance(diffusion)
    return Pretrained(
        model=model(mode, learned_variance=learned, **changes),
        tokenizer=tokenizer(),
        diffusion=diffusion,
        generate=GenerateConfig(
            sampler="euler" if isinstance(diffusion, FlowConfig) else "ddim", steps=4, guidance=2.0, max_tokens=8
        ),
    )


def learns_variance(diffusion: DiffusionConfig) -> bool:
    """Whether the image head must return one."""
    return isinstance(diffusion, DDPMConfig) and diffusion.variance == "learned"


def sequencer(mode: str = "adaln", **sequence: Any) -> Sequencer:
    """The sequencer of a mode; nothing is dropped unless asked for."""
    config = SequenceConfig(**{"drop_text": 0.0, "drop_context": 0.0, **sequence})
    return build_sequencer(model_config(mode), tokenizer(), config)


@cache
def encoder() -> VisionEncoder:
    """A CLIP that sees pictures as 12x12 pixels, 3x3 patches. Shared: never change it."""
    side = (encoders.SIDE, encoders.SIDE)
    preparation = Preparation(resized=side, size=side, mode="bicubic", mean=(0.5,) * 3, deviation=(0.5,) * 3)
    return VisionEncoder(encoders.network("clip-vision"), preparation)


def vision_of(config: ModelConfig) -> VisionEncoder | None:
    """The encoder of a model that has one."""
    return encoder() if config.vision_width else None


def words(random: Random, fewest: int = 1, most: int = 5) -> str:
    """Some words."""
    return " ".join(random.choices(WORDS, k=random.randint(fewest, most)))


def image(random: Random, *, target: bool = False, role: Role | None = None, size: tuple[int, int] = (0, 0)) -> Image:
    """Random pixels."""
    height, width = size if size[0] else random.choice(SIZES)
    values = torch.tensor(list(random.randbytes(3 * height * width)), dtype=torch.uint8)
    return Image(pixels=values.view(3, height, width), target=target, role=role)


def document(random: Random, *, chat: bool | None = None, images: bool = True, most: int = 4) -> Document:
    """Text and images in any order, context and targets; a chat alternates between user and assistant."""
    chat = random.random() < 0.5 if chat is None else chat
    segments: list[Segment] = []
    role: Role | None = None
    for _ in range(random.randint(1, most)):
        if chat:
            role = "user" if role in (None, "assistant") else "assistant"
        for _ in range(random.randint(1, 2)):
            if images and random.random() < 0.5:
                target = role == "assistant" if chat else random.random() < 0.6
                segments.append(image(random, target=target, role=role))
            else:
                segments.append(Text(words(random), role))
    return Document(tuple(segments))


def documents(seed: int, count: int, **options: Any) -> list[Document]:
    """`count` random documents."""
    return [document(Random(f"{seed} {number}"), **options) for number in range(count)]


def layouts(
    mode: str, seed: int, count: int, *, sequence: dict[str, Any] | None = None, **options: Any
) -> list[Layout]:
    """Random documents in training form, numbered from 10."""
    own = sequencer(mode, **(sequence or {}))
    return [own.document(item, 10 + number, seed=seed) for number, item in enumerate(documents(seed, count, **options))]


def in_rows(items: Sequence[Layout], *, rows: int = 2, padding: int = 3) -> Batch:
    """Layouts dealt to rows in turn, each row padded."""
    dealt = [list(items[row::rows]) for row in range(rows)]
    length = max(sum(map(len, row)) for row in dealt) + padding
    return collate(dealt, length=length, pad=tokenizer().pad)


def latents_of(batch: Batch, *, seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[Place]]:
    """Latents, network times and places of a batch; noise and times depend on (document, image) alone."""
    images, times, places = [], [], []
    for slots in batch.images:
        clean = Pixels().encode(slots.pixels)[slots.picture]
        keys = [(int(slots.document[m]), int(slots.number[m])) for m in slots.picture]
        noise = torch.stack([torch.randn(clean.shape[1:], generator=generator(seed, *key, "test")) for key in keys])
        time = torch.tensor([200.0 + 37 * key[0] % 500 + 100 * key[1] for key in keys])
        images.append(torch.where(slots.noised[:, None, None, None], 0.5 * clean + noise, clean))
        times.append(torch.where(slots.noised, time, torch.zeros(())))
        places.append(Place(slots.row, slots.start, slots.grid))
    return images, times, places


def features_of(batch: Batch) -> dict[str, Any]:
    """What a network is given of the images that a vision encoder reads."""
    return {
        "features": [encoder().encode(slots.pixels)[slots.picture] for slots in batch.vision],
        "seen": [Place(slots.row, slots.start, slots.grid) for slots in batch.vision],
    }


@torch.no_grad()
def hidden_of(network: MonoFormer, batch: Batch, *, seed: int = 0) -> Tensor:
    """Hidden states (B, T, D) of a batch, the targets noised."""
    images, times, places = latents_of(batch, seed=seed)
    given: dict[str, Any] = {"images": images, "times": times, "places": places, **features_of(batch)}
    states: Tensor = network(batch.ids, batch.positions, dense_mask(batch), **given)
    return states


def source(seed: int = 0) -> Indexed:
    """An endless stream of short random documents, some without images."""
    return Indexed(lambda number: document(Random(f"{seed} {number}"), images=number % 3 != 0, most=2))


def run_config(folder: Path, *, mode: str = "adaln", train: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    """A run of six steps with AdamW at a constant rate."""
    settings: dict[str, Any] = {
        "steps": 6, "rows": 4, "pass_rows": 2, "warmup": 2, "schedule": "constant", "log_every": 1,
        "checkpoint_every": 100, "precision": "fp32", "device": "cpu", "optimizer": AdamWConfig(rate=1e-2),
        "tensorboard": False, **(train or {}),
    }  # fmt: skip
    settings["warmup"] = min(settings["warmup"], settings["steps"])
    parts: dict[str, Any] = {
        "name": "tiny",
        "folder": str(folder),
        "model": model_config(mode),
        "tokenizer": TokenizerConfig(vocabulary=300),
        "sequence": SequenceConfig(row=96, window=12),
        "train": TrainConfig(**settings),
    }
    parts |= changes
    return RunConfig(**{"vision": VisionConfig(path="tiny" if parts["model"].vision_width else ""), **parts})


def trainer(
    config: RunConfig, *, sample: Sample | None = None, stream: Source | None = None, ranks: Ranks = ALONE
) -> Trainer:
    """A trainer built anew: random weights from the seed, the stream from its start, frozen where the run says so."""
    with torch.random.fork_rng(devices=[]):
        network = randomize(MonoFormer(config.model), config.seed)
    device = torch.device("cpu")
    spread(network, config.train.parallel, ranks, device=device, bf16=computes_in_bf16(config.train, device))
    if config.train.freeze == "text":
        freeze_text(network, rows=new_rows(config.model, tokenizer()))
    parts = Parts(
        config=config,
        model=network,
        objective=build_objective(config.diffusion),
        autoencoder=build_autoencoder(config.autoencoder),
        loader=build_loader(config, stream or source(config.seed), tokenizer(), ranks=ranks),
        device=device,
        ranks=ranks,
        vision=encoder() if config.vision.path == "tiny" else build_vision(config.vision),
    )
    return Trainer(parts, sample=sample)
