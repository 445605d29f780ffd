"""Named complete configurations. Each docstring gives the command, the machine, the run time and the result."""

from collections.abc import Callable

from monoformer.config.data import (
    ScenesData,
    SequenceConfig,
    TokenizerConfig,
)
from monoformer.config.model import ModelConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import MuonConfig, TrainConfig


def scenes_quick() -> RunConfig:
    """Little scenes at 32x32 from nothing: `monoformer train scenes-quick`, about five minutes on two CPU cores."""
    return RunConfig(
        name="scenes-quick",
        model=ModelConfig(
            width=192, layers=6, heads=3, kv_heads=3, mlp_width=512, context=256, patch=4, image_sizes=((32, 32),)
        ),
        tokenizer=TokenizerConfig(vocabulary=512),
        data=ScenesData(size=32, objects=(1, 2), draw=6.0, describe=2.0, edit=1.0, question=0.5, story=0.5),
        sequence=SequenceConfig(row=256, window=512),
        train=TrainConfig(steps=400, rows=32, warmup=40, optimizer=MuonConfig(), checkpoint_every=200),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "scenes-quick": scenes_quick,
}
"""All presets by name."""
