"""A run's checkpoint as a model to be used, while the run goes on or after it was broken off.

Knows nothing of data: none is read. Invariant: the weights are those that the run would give out if it ended there.
"""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from monoformer.config.parallel import ParallelConfig
from monoformer.config.run import RunConfig
from monoformer.pretrained import Pretrained
from monoformer.train.build import build_network, find_tokenizer, to_use
from monoformer.train.checkpoint import TrainState, checkpoints, load_checkpoint, read_progress
from monoformer.train.lora import plain
from monoformer.train.optim import EMA
from monoformer.train.parallel import ALONE
from monoformer.train.start import read_start, taking


def read_saved(config: RunConfig, *, step: int = 0) -> tuple[int, Pretrained, dict[str, Tensor]]:
    """The step, the model, and its averaged weights at a checkpoint of a run (0: the last), on the CPU.

    Raises ValueError where there is no such checkpoint.
    """
    found = {int(path.name.removeprefix("step-")): path for path in checkpoints(config.path / "checkpoints")}
    if not found or (step and step not in found):
        known = f"has those of steps {', '.join(map(str, found))}" if found else "has none"
        raise ValueError(f"the run {config.path} {known}; name a run's folder, and a step with a checkpoint")
    step = step or max(found)
    config = replace(config, train=replace(config.train, parallel=ParallelConfig()))
    started = read_start(config) if config.start else None
    if started:  # its shape is as the run left it: what a vision encoder sees may have come in with it
        config = replace(taking(config, started.pretrained), model=config.model)
    tokenizer = started.pretrained.tokenizer if started else find_tokenizer(config)
    assert tokenizer is not None, "a run with checkpoints has one"
    device = torch.device("cpu")
    model, _ = build_network(config, started, tokenizer, ranks=ALONE, device=device, bf16=False, warn=warnings.warn)
    state = TrainState(model=model, ema=EMA(model), optimizers=[])
    load_checkpoint(found[step], state, read_progress(found[step]))
    return step, to_use(model, tokenizer, config, started), plain(state.averaged(), config)
