"""Presets of our own that draw in an autoencoder's latents, as both papers do."""

from dataclasses import replace

from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.data import ParquetData, ScenesData, SequenceConfig, TokenizerConfig
from monoformer.config.diffusion import DDPMConfig, FlowConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import MuonConfig, TrainConfig

LEARNING = TrainConfig(
    rows=14,
    warmup=100,
    decay=0.8,
    optimizer=MuonConfig(adamw_rate=5e-3),
    image_weight=5.0,
    checkpoint_every=250,
    sample_every=500,
)
"""14 rows of 320 tokens a step; Transfusion's image weight, for eps and velocity errors of about unit size."""


def scenes_latent() -> RunConfig:
    """MonoFormer's own recipe at a small size: 128x128 scenes in latents of patch 2, from a small language model.

    DDPM with linear betas, eps by mean squared error, shared weights, two-way images; most of the loss is
    the pictures'. MonoFormer's time is a token, which learns too slowly what eps is near the noise (docs/log.md): here
    it is adaLN.
    The language model is made by two commands (text-quick, export; docs/paper-to-code.md), and gives the shape.

    monoformer train scenes-latent --from LANGUAGE_MODEL --train.parallel.compile
    Two CPU cores, 83 minutes of one with AVX512-BF16: 98% of pictures described, 89% of captions drawn.
    """
    return RunConfig(
        name="scenes-latent",
        start="LANGUAGE_MODEL",
        model=ModelConfig(context=512, patch=2, channels=4, down=8, time="adaln", image_sizes=((128, 128),)),
        autoencoder=AutoencoderConfig(path="models/autoencoder-mini"),
        diffusion=DDPMConfig(),
        data=ScenesData(size=128, objects=(1, 3), draw=7.5, describe=2.5, edit=0.0, question=0.0, story=0.25),
        sequence=SequenceConfig(row=286, window=1024, noise_draws=4),
        train=replace(LEARNING, steps=6400, rows=16, image_weight=30.0, sample_every=1000),
        generate=GenerateConfig(sampler="ddim", eta=1.0, steps=50, guidance=3.0),
    )


def flickr8k() -> RunConfig:
    """Photographs at 96x96 with five captions each, in latents of 32 channels (TAEF2): 36 tokens a picture.

    monoformer train flickr8k --data.files FLICKR8K.parquet --autoencoder.path FOLDER
    python -m tests.taef2 WEIGHTS/ flickr8k --data.files FLICKR8K.parquet      (TAEF2 itself, from its two files)
    python -m tests.taef2 WEIGHTS/ encode flickr8k --data.files FLICKR8K.parquet --out CACHE      (1.6 times the steps)
    Two CPU cores, about three quarters of an hour. Begun once, for 370 steps (docs/results.md).
    """
    return RunConfig(
        name="flickr8k",
        model=ModelConfig(
            width=320,
            layers=6,
            heads=5,
            kv_heads=5,
            mlp_width=864,
            context=512,
            patch=2,
            channels=32,
            down=8,
            time="add",
            image_sizes=((96, 96),),
        ),
        autoencoder=AutoencoderConfig(path="taef2"),
        diffusion=FlowConfig(prediction="velocity"),
        tokenizer=TokenizerConfig(vocabulary=2048),
        data=ParquetData(
            files=("data/flickr8k96/train.parquet",),
            caption="{captions}",
            size=96,
            draw=4.0,
            describe=1.0,
            holdout=200,
        ),
        sequence=SequenceConfig(row=356, window=1024, noise_draws=2),
        train=replace(LEARNING, rows=13),
        generate=GenerateConfig(sampler="euler", steps=40, guidance=3.0),
    )
