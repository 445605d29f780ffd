"""Presets of our own, small enough for a CPU."""

from dataclasses import replace

from monoformer.config.autoencoder import AutoencoderRun
from monoformer.config.data import (
    FolderData,
    MixtureData,
    ParquetData,
    ScenesData,
    SequenceConfig,
    TextData,
    TokenizerConfig,
)
from monoformer.config.diffusion import FlowConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import MuonConfig, TrainConfig

STOCHASTIC = GenerateConfig(sampler="ddim", eta=1.0, steps=40, guidance=1.25)
"""Noise in every step mends what earlier steps got wrong; guidance decides what is drawn, near the noise, and spoils
small things near the clean picture (docs/log.md)."""

AT_64 = TrainConfig(
    rows=14,
    warmup=100,
    decay=0.8,
    optimizer=MuonConfig(adamw_rate=5e-3),
    image_weight=12.0,
    checkpoint_every=250,
    sample_every=500,
)
"""What runs from nothing at 64x64 share: 14 rows of 320 tokens or 15 shorter ones, about 45 noised pictures a step.

How long a row is decides how much of it stays empty (docs/decisions.md); `monoformer data check` says it beforehand."""


def scenes_quick() -> RunConfig:
    """Little drawn scenes at 32x32 from nothing, so that minutes suffice.

    monoformer train scenes-quick    (the same run as `monoformer demo --train`)
    Two CPU cores, about five minutes. Of the objects drawn from 256 held-out captions 93% have the right colour, 83%
    the right colour and shape.
    """
    return RunConfig(
        name="scenes-quick",
        model=ModelConfig(
            width=192,
            layers=4,
            heads=3,
            kv_heads=3,
            mlp_width=512,
            context=512,
            patch=8,
            time="add",
            image_sizes=((32, 32),),
        ),
        diffusion=FlowConfig(time_mean=0.5, clamp_time=0.3),
        tokenizer=TokenizerConfig(vocabulary=512),
        data=ScenesData(size=32, objects=(1, 2), draw=8.0, describe=1.0, edit=0.5, question=0.25, story=0.25),
        sequence=SequenceConfig(row=252, window=512, noise_draws=4),
        train=TrainConfig(
            steps=1800,
            rows=8,
            warmup=30,
            decay=0.8,
            optimizer=MuonConfig(adamw_rate=5e-3),
            image_weight=20.0,
            checkpoint_every=350,
        ),
        generate=replace(STOCHASTIC, steps=25, guidance=4.0, guidance_interval=(0.6, 1.0)),
    )


def scenes() -> RunConfig:
    """Drawn scenes at 64x64 in five kinds: draw, describe, edit, answer, tell.

    monoformer train scenes
    Two CPU cores, about 70 minutes. 95% of held-out captions drawn exactly, 90% of pictures described, 65% edited.
    """
    return RunConfig(
        name="scenes",
        model=ModelConfig(width=256, layers=6, heads=4, kv_heads=4, mlp_width=704, context=512, patch=8, time="add"),
        diffusion=FlowConfig(time_mean=1.0, clamp_time=0.3),
        tokenizer=TokenizerConfig(vocabulary=512),
        data=ScenesData(size=64, objects=(1, 3), draw=5.0, describe=2.5, edit=3.5, question=1.0, story=0.5),
        sequence=SequenceConfig(row=298, window=1024, noise_draws=2),
        train=replace(AT_64, steps=5000, rows=15),
        generate=replace(STOCHASTIC, guidance=3.0),
    )


def cifar10() -> RunConfig:
    """CIFAR-10 at 32x32, drawn from class names, by a network of scenes-quick's shape with patches of 4.

    monoformer train cifar10 --data.files CIFAR10.parquet
    Two CPU cores, about half an hour: a ResNet-56 classifies 49% of 1,000 drawings as asked for (docs/results.md).
    """
    base = scenes_quick()
    return replace(
        base,
        name="cifar10",
        model=replace(base.model, patch=4, context=256),
        diffusion=FlowConfig(),
        data=ParquetData(
            files=("data/cifar10/train.parquet",),
            caption="Please generate an image of {label}.",
            size=32,
            draw=1.0,
            describe=0.0,
        ),
        sequence=SequenceConfig(row=231, window=512),
        train=replace(base.train, steps=2000, rows=18, checkpoint_every=250),
    )


EMOJI = ParquetData(
    files=("data/emoji128/train.parquet",),
    caption="{name}[, {skin_tone} skin tone]",
    size=64,
    draw=4.0,
    describe=1.0,
    edit=1.5,
    edit_group="name",
    edit_column="skin_tone",
    instruction="Change the skin tone to {}.",
    holdout=200,
    holdout_pairs=100,
)
"""Emoji with names and skin tones; what it holds out is the same at every size."""

PICTURES_AT_64 = ModelConfig(width=320, layers=6, heads=5, kv_heads=5, mlp_width=864, context=512, patch=8, time="add")
"""The shape for pictures of the world at 64x64, wider than that for scenes."""


def emoji() -> RunConfig:
    """Emoji at 64x64 with names and skin tones, beside public-domain books: draw, name, change the skin tone, write.

    monoformer train emoji --data.sources.0.files EMOJI.parquet --data.sources.1.files BOOKS/
    Two CPU cores, some three hours. After 1,540 steps, with clamp_time 0.05, 92 of 96 left-out skin tones are right.
    """
    return RunConfig(
        name="emoji",
        model=PICTURES_AT_64,
        diffusion=FlowConfig(time_mean=1.0, clamp_time=0.3),
        tokenizer=TokenizerConfig(vocabulary=2048),
        data=MixtureData(sources=(EMOJI, TextData(files=("data/text/books",), characters=300)), weights=(0.85, 0.15)),
        sequence=SequenceConfig(row=294, window=1024, noise_draws=2),
        train=replace(AT_64, steps=5000, rows=15),
        generate=STOCHASTIC,
    )


def monoformer_mini() -> RunConfig:
    """The released model: `scenes` trained on, with emoji by names and skin tones, and books; 64x64, no autoencoder.

    monoformer train monoformer-mini --from runs/scenes --data.sources.1.files BOOKS/ --data.sources.2.files EMOJI
    Two CPU cores, some hour and a half after those of `scenes`, whose shape and tokenizer it keeps. After that twice,
    held out: 97% of captions drawn, 97% of pictures described, 91% edited; 76% of drawn emoji are told among 10.
    """
    base = scenes()
    assert isinstance(base.data, ScenesData)
    drawn = replace(base.data, draw=3.0, describe=1.5, edit=6.0, question=3.0, question_turns=6, brief=0.15)
    books = TextData(files=("data/text/books",), characters=300)
    emoji = replace(EMOJI, describe=1.5, edit=1.0)
    return replace(
        base,
        name="monoformer-mini",
        data=MixtureData(sources=(drawn, books, emoji), weights=(0.55, 0.08, 0.37)),
        train=replace(base.train, steps=8000, warmup=50, decay=0.95),
        generate=replace(base.generate, image_guidance=3.0),
    )


def folder() -> RunConfig:
    """Your own folder of pictures from nothing; captions from metadata.csv, .txt files beside them, or class folders.

    monoformer train folder --data.root pictures/
    Two CPU cores, about an hour at 64x64. Depends on the pictures.
    """
    return RunConfig(
        name="folder",
        model=PICTURES_AT_64,
        diffusion=FlowConfig(time_mean=1.0),
        tokenizer=TokenizerConfig(vocabulary=1024),
        data=FolderData(),
        sequence=SequenceConfig(row=282, window=512, noise_draws=2),
        train=replace(AT_64, steps=3000, rows=16),
        generate=STOCHASTIC,
    )


def finetune() -> RunConfig:
    """A saved model trained on, on your own folder of pictures; its tokenizer, shape and picture size are kept.

    monoformer train finetune --from MODEL --data.root pictures/
    Two CPU cores, about ten minutes for a small model. Depends on the pictures.
    """
    return RunConfig(
        name="finetune",
        start="MODEL",
        data=FolderData(),
        sequence=SequenceConfig(row=282, window=256, noise_draws=2),
        train=replace(
            AT_64,
            steps=300,
            rows=16,
            warmup=20,
            optimizer=MuonConfig(rate=0.004, adamw_rate=1e-3),
            checkpoint_every=100,
            sample_every=100,
        ),
    )


def autoencoder() -> AutoencoderRun:
    """A small autoencoder (4 channels, down 8, 3.0M parameters) of scenes and emoji at 128x128, for latents offline.

    monoformer train autoencoder --data.sources.1.files EMOJI.parquet
    One CPU core, about 45 minutes. Held-out scenes come back at 34 dB, held-out emoji at 27 (models/autoencoder-mini).
    """
    emoji = replace(EMOJI, size=128, describe=0.0, edit=0.0)
    drawn = ScenesData(size=128, draw=1.0, describe=0.0, edit=0.0, question=0.0, story=0.0)
    return AutoencoderRun(
        data=MixtureData(sources=(drawn, emoji), weights=(0.5, 0.5)),
        widths=(16, 32, 96, 128),
        crop=64,
        train=TrainConfig(
            steps=6000,
            rows=8,
            warmup=100,
            decay=0.6,
            optimizer=MuonConfig(adamw_rate=1e-3),
            checkpoint_every=250,
            precision="fp32",
        ),
    )
