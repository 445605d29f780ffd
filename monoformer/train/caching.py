"""Which caches of latents a run could read in the place of its pictures, and the run that reads them.

Knows nothing of how a cache is written. Invariant: the run on caches reads the same stream of documents as the run that
it was made from, as long as the caches last.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from monoformer.autoencoder import Autoencoder, build_autoencoder, kept_autoencoder
from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.data import MixtureData, SourceConfig, TextData, check_named, single_sources
from monoformer.config.run import RunConfig
from monoformer.config.sources import CacheData, StreamData
from monoformer.data.build import build_parts
from monoformer.data.cache import Encoding, describe
from monoformer.data.encoding import Job
from monoformer.data.source import Indexed, seed_of
from monoformer.device import choose
from monoformer.pretrained import find_folder, is_monoformer, read_folder_config
from monoformer.train.precision import computes_in_bf16
from monoformer.train.sizes import check_sizes, sized


def shaped(config: RunConfig) -> RunConfig:
    """The run with the sizes of its pictures, and with the shape and autoencoder of the model it starts from."""
    check_named(config.data)
    if config.start:
        folder = find_folder(config.start)
        if is_monoformer(folder):
            ours = read_folder_config(folder)
            own = config.autoencoder if config.autoencoder.path else kept_autoencoder(ours.autoencoder, folder)
            config = replace(config, model=ours.model, diffusion=ours.diffusion, autoencoder=own)
    config = replace(config, data=sized(config.data, config.model))
    check_sizes(config)
    return config


def cache_jobs(
    config: RunConfig,
    out: Path,
    *,
    passes: int,
    documents: int = 0,
    shard: int = 1024,
    build: Callable[[torch.device], Autoencoder] | None = None,
) -> list[Job]:
    """A job for each source of pictures of a run that `shaped` gave: `passes` over what has an end, else `documents`.

    `build` makes another autoencoder than the one that `config.autoencoder` names. Raises ValueError where there is
    nothing to encode.
    """
    if passes < 1 or documents < 0:
        raise ValueError(f"--passes must be at least 1 and --documents at least 0, but are {passes} and {documents}")
    device = choose(config.train.device)
    dtype = torch.bfloat16 if computes_in_bf16(config.train, device) else torch.float32
    build = build or partial(_build, config=config.autoencoder, dtype=dtype)
    sources = single_sources(config.data)
    parts = build_parts(config.data, seed=config.seed)
    by = describe(build(device), path=config.autoencoder.path)
    jobs = []
    for place, (source, part) in enumerate(zip(sources, parts, strict=True)):
        if not has_pictures(source):
            continue
        length = part.length if isinstance(part, Indexed) else 0
        if not length and not documents:
            raise ValueError(
                f"the source {part.origin(0)} has no end; say how many of its documents: --documents 20000"
            )
        seed = seed_of(place, config.seed) if isinstance(config.data, MixtureData) else config.seed
        encoding = Encoding(by=by, source=source, seed=seed, documents=length * passes or documents, shard=shard)
        jobs.append(Job(folder=_folder(config, out, place), encoding=encoding, build=build, device=device.type))
    if documents and not any(job.encoding.documents == documents for job in jobs):
        raise ValueError(f"--documents {documents} is for sources without end, and the run has none; leave it out")
    if not jobs:
        raise ValueError("none of the run's sources has pictures that are not in a cache already")
    return jobs


def has_pictures(source: SourceConfig) -> bool:
    """Whether there is anything to encode; a cache has its latents already."""
    if isinstance(source, StreamData):
        return source.chat or bool(source.image_column)
    return not isinstance(source, TextData | CacheData)


def on_caches(config: RunConfig, out: Path) -> RunConfig:
    """The same run, reading the caches in `out`."""
    found = tuple(
        CacheData(root=str(_folder(config, out, place))) if has_pictures(source) else source
        for place, source in enumerate(single_sources(config.data))
    )
    return replace(
        config, data=replace(config.data, sources=found) if isinstance(config.data, MixtureData) else found[0]
    )


def _folder(config: RunConfig, out: Path, place: int) -> Path:
    """Where the cache of a source lies: those of a mixture by their places."""
    return out / str(place) if isinstance(config.data, MixtureData) else out


def _build(device: torch.device, *, config: AutoencoderConfig, dtype: torch.dtype) -> Autoencoder:
    return build_autoencoder(config, device=device, dtype=dtype)
