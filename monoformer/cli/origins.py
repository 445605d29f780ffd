"""What the figures of an evaluation depend on, as text and digests: weights, data, code, versions, machine.

Knows nothing of how anything is scored.
"""

import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from monoformer import __version__
from monoformer.config.evaluate import CompositionScores, ForgettingScores, SceneScores, ScoreConfig, TaskScores
from monoformer.config.run import RunConfig, to_json
from monoformer.doctor import describe_device
from monoformer.evaluate.digests import digest_files, digest_named
from monoformer.evaluate.peer import Peer
from monoformer.pipeline import Pipeline
from monoformer.sweep import Record, commit

PACKAGES = ("torch", "lm_eval", "torch-fidelity", "pycocoevalcap")
"""Packages whose versions figures depend on."""

OF_A_MODEL = ("*.safetensors", "*.json", "*.jinja", "tokenizer*")
"""Files of a model folder, and of the autoencoder and vision encoder inside it, that figures depend on."""


def describe_origin(pipeline: Pipeline, folder: Path, arguments: Sequence[str], *, peer: Peer | None = None) -> Record:
    """What all figures of this command depend on, and where they came about."""
    weight = pipeline.pretrained.model.tokens.weight
    own = {path for kind in OF_A_MODEL for path in folder.rglob(kind)}
    files, dtype = (peer.files(), peer.network.dtype) if peer else (sorted(own), weight.dtype)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "model": str(folder),
        "weights": digest_files(files),
        "precision": str(dtype).removeprefix("torch."),
        "command": f"monoformer evaluate {shlex.join(arguments)}",
        "commit": commit() or "unknown",
        "versions": {"monoformer": __version__, **versions},
        "machine": f"{describe_device(weight.device)}, {torch.get_num_threads()} threads",
    }


def trained_on(config: ScoreConfig, trained: RunConfig | None) -> list[Any]:
    """What figures may depend on of the run that trained the model: its data, and for `forgetting` its start."""
    if trained is None:
        return []
    data, start = to_json(trained.data), [trained.start] if isinstance(config, ForgettingScores) else []
    unread = isinstance(config, SceneScores | CompositionScores | TaskScores)  # none of the data's files is read
    return [data, {} if unread else digest_named(data, read=False), start, digest_named(start)]
