"""What a configuration leaves open, decided when a run begins and kept to its end."""

from dataclasses import replace
from typing import Literal, TypeVar

import torch

from monoformer.config.autoencoder import AutoencoderRun
from monoformer.config.run import RunConfig, load_config_of
from monoformer.device import has_bf16_units
from monoformer.train.checkpoint import last_step
from monoformer.train.parallel import ALONE, Ranks

Run = TypeVar("Run", RunConfig, AutoencoderRun)


def settled(config: Run, *, device: torch.device, ranks: Ranks = ALONE) -> Run:
    """The run with `precision = auto` decided, for all its processes and to its end: as its folder says where it goes
    on, else what is faster here. Some CPUs are tried, and a trial might end otherwise another time.
    """
    if config.train.precision != "auto":
        return config
    # all processes ask, whatever each finds in the folder: or those that ask would wait for ever
    (agreed,) = ranks.total(int(has_bf16_units(device)))
    saved = config.path / "config.json"
    if last_step(config.path) and saved.is_file():
        begun = load_config_of(type(config), saved)
        return replace(config, train=replace(config.train, precision=begun.train.precision))
    chosen: Literal["bf16", "fp32"] = "bf16" if agreed == ranks.world else "fp32"
    return replace(config, train=replace(config.train, precision=chosen))
