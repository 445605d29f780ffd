"""What passes run: the model, what stands beside it, and the cache that it reads and fills.

Knows nothing of requests.
"""

import logging
from dataclasses import dataclass

import torch

from monoformer.autoencoder import Autoencoder, check_fits
from monoformer.diffusion.objectives import Objective, build_objective
from monoformer.generate.buckets import Buckets
from monoformer.model.attention import KVCache
from monoformer.model.decoding import Decoder
from monoformer.model.monoformer import MonoFormer
from monoformer.pretrained import Pretrained
from monoformer.vision import VisionEncoder, check_sees

logger = logging.getLogger(__name__)

CROWD = 8
"""Rows that decoding several is compiled for, which then serves any number of them."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a pass runs: the model, what it was trained to predict, its autoencoder, and the cache.

    Where it has one, its vision encoder, too.
    """

    model: MonoFormer
    objective: Objective
    autoencoder: Autoencoder
    cache: KVCache
    vision: VisionEncoder | None = None
    buckets: Buckets | None = None
    """Shapes that passes are padded to; None: each has the shape of its rows."""
    decoder: Decoder | None = None
    """Reads one more token of every row; None: as the model does any other pass."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.tokens.weight.device


def build_network(
    pretrained: Pretrained,
    autoencoder: Autoencoder,
    *,
    vision: VisionEncoder | None,
    slots: int,
    deterministic: bool,
    compile: bool,
) -> Network:
    """All of it for one engine, and an empty cache. ValueError where parts do not fit, or nothing can compile."""
    model = pretrained.model
    check_fits(autoencoder, model.config)
    check_sees(vision, model.config)
    cache = model.cache(slots, model.config.context)
    buckets = Buckets.of(model.tokens.weight.device) if deterministic else None
    decoder = Decoder(model, cache) if compile else None
    if decoder is not None:
        logger.info("%s", decoder.warm_up((1, min(slots, CROWD)) if buckets is None else (buckets.rows,)))
    return Network(
        model=model,
        objective=build_objective(pretrained.diffusion),
        autoencoder=autoencoder,
        cache=cache,
        vision=vision,
        buckets=buckets,
        decoder=decoder,
    )
