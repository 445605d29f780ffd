"""Transfusion's recipe (arXiv 2408.11039) in its five sizes, with linear or U-Net patches.

None was run here. `SHAPES` is the paper's table of sizes; everything else is the same for all of them.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.data import MixtureData, ParquetData, SequenceConfig, TextData, TokenizerConfig
from monoformer.config.diffusion import DDPMConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.config.parallel import ParallelConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import AdamWConfig, TrainConfig
from monoformer.presets.monoformer import TINYLLAMA

Size: TypeAlias = Literal["0.16b", "0.37b", "0.76b", "1.4b", "7b"]
SIZES: tuple[Size, ...] = get_args(Size)


class Shape(NamedTuple):
    """Layers, width, heads, inner width of SwiGLU; the backbone's parameters in millions (32,000 tokens, untied)."""

    layers: int
    width: int
    heads: int
    mlp_width: int
    millions: float


SHAPES: dict[Size, Shape] = {
    "0.16b": Shape(16, 768, 12, 2048, 162.4),
    "0.37b": Shape(24, 1024, 16, 2816, 373.9),
    "0.76b": Shape(24, 1536, 24, 4096, 777.9),
    "1.4b": Shape(24, 2048, 16, 5632, 1364.3),
    "7b": Shape(32, 4096, 32, 11008, 6738.4),
}
UNET_WIDTH = 640
"""Takes 0.26 to 0.27 billion parameters at patch 2 (the paper's 0.27), whatever the transformer's width."""
STEPS, ROWS, ROW = 250_000, 512, 4096
"""Half a trillion tokens, 2 million a step, as in the paper's comparisons; its 7B was trained on 2 trillion."""


def transfusion(size: Size, *, unet: bool = False) -> Callable[[], RunConfig]:
    """The preset of a size: a function that makes its configuration."""
    name = f"transfusion-{size}{'-unet' if unet else ''}"

    def build() -> RunConfig:
        return _transfusion(name, SHAPES[size], unet=unet)

    build.__name__ = name
    build.__doc__ = _describe(name, SHAPES[size], unet=unet)
    return build


def _describe(name: str, shape: Shape, *, unet: bool) -> str:
    """The preset's docstring. H100-days: 6 operations a parameter and token at 40% of 989 TFLOP/s."""
    days = 6 * shape.millions * 1e6 * STEPS * ROWS * ROW / (0.4 * 989e12) / 86400
    reported = {
        "transfusion-0.76b": "the paper reports FID 20.3, and 61.3 with causal attention",
        "transfusion-0.76b-unet": "the paper reports FID 16.7",
        "transfusion-7b-unet": "the paper reports FID 6.78 on COCO and 0.63 on GenEval after 2 trillion tokens",
    }.get(name, "the paper plots its scaling only")
    return (
        f"Transfusion with {shape.millions} million parameters in its transformer"
        f"{' and about 270 in a U-Net' if unet else ''}, 256x256, patches of 2x2 latents"
        f"{' through a U-Net' if unet else ''}.\n\n"
        f"monoformer train {name} --data.sources.0.files TEXT/ --data.sources.1.files PICTURES.parquet \\\n"
        "    --autoencoder.path AUTOENCODER\n"
        f"About {days:,.0f} H100-days by its operations; not run here, and {reported}.\n"
        "AUTOENCODER: an AutoencoderKL with 8 channels and 8x; the paper's was not released. Parquet with the columns\n"
        "image and caption. Set --data.weights so that both halves hold as many tokens, as in the paper: a picture\n"
        "with its caption has about 290."
    )


def _transfusion(name: str, shape: Shape, *, unet: bool) -> RunConfig:
    """256x256 pictures are latents of 32x32x8 and 256 tokens. Captions come first in 80% of the pairs."""
    text = TextData(characters=4000, holdout=0.001)
    pictures = ParquetData(size=256, draw=4.0, describe=1.0)
    return RunConfig(
        name=name,
        autoencoder=AutoencoderConfig(path="AUTOENCODER", posterior="sample"),
        model=ModelConfig(
            width=shape.width,
            layers=shape.layers,
            heads=shape.heads,
            kv_heads=shape.heads,
            mlp_width=shape.mlp_width,
            context=ROW,
            qk_norm=False,
            patch=2,
            channels=8,
            down=8,
            time="add",
            image_head="linear",
            image_patches="unet" if unet else "linear",
            unet_width=UNET_WIDTH if unet else 0,
            image_sizes=((256, 256),),
        ),
        diffusion=DDPMConfig(steps=1000, betas="cosine", prediction="eps"),
        tokenizer=TokenizerConfig(path=TINYLLAMA),
        data=MixtureData(sources=(text, pictures), weights=(0.22, 0.78)),
        sequence=SequenceConfig(row=ROW, window=4096, context="noised", noise_limit=0.5, learned_text="all"),
        train=TrainConfig(
            steps=STEPS,
            rows=ROWS,
            optimizer=AdamWConfig(rate=3e-4, betas=(0.9, 0.95), weight_decay=0.1),
            warmup=4000,
            schedule="cosine",
            final_rate=0.05,
            clip=1.0,
            text_weight=1.0,
            parallel=ParallelConfig(strategy="fsdp"),
            image_weight=5.0,
            checkpoint_every=5000,
        ),
        generate=GenerateConfig(sampler="ddpm", steps=250, guidance=5.0),
    )
