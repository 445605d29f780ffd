"""Real pictures that drawn ones are compared with, and their features, kept in a folder.

Knows files and extractors, nothing of models. Invariant: what is kept is found again by the extractor's name and
weights and by the pictures' own bytes, so neither can change unnoticed.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monoformer.config.sources import Shape
from monoformer.data.images import picture_files
from monoformer.data.pictures import read_picture
from monoformer.evaluate.digests import digest_chunks
from monoformer.evaluate.extractors import Extractor
from monoformer.evaluate.frechet import Statistics, statistics
from monoformer.files import whole_file

BATCH = 64
"""Pictures in one pass of the extractor."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures by number; reading one twice gives the same."""

    count: int
    picture: Callable[[int], Tensor]
    """uint8 (3, H, W), all of one size."""
    inception: Statistics | None = None
    """What their file says of Inception's features, of more pictures than these perhaps."""

    @classmethod
    def listed(cls, pictures: Sequence[Tensor]) -> "Pictures":
        """Pictures that are in memory."""
        return cls(count=len(pictures), picture=pictures.__getitem__)

    def batches(self) -> Iterable[Tensor]:
        """uint8 (up to BATCH, 3, H, W)."""
        for first in range(0, self.count, BATCH):
            yield torch.stack([self.picture(i) for i in range(first, min(first + BATCH, self.count))])


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What is known of the real pictures."""

    statistics: Statistics
    features: Tensor | None
    """(N, F); None where only the statistics are known."""


def open_reference(path: str, *, size: tuple[int, int], shape: Shape = "crop") -> Pictures | Statistics:
    """The pictures of a folder in the model's (height, width) and shape, or what an .npz of ADM's form holds: pictures,
    statistics of Inception's features, or both, as ADM's own files do (statistics of all, pictures of some).
    """
    if Path(path).is_dir():
        files = picture_files(Path(path))
        read = partial(read_picture, sizes=(size,), shape=shape)
        return Pictures(count=len(files), picture=lambda i: read(files[i], name=str(files[i])))
    arrays = read_arrays(path)
    known = None
    if {"mu", "sigma"} <= arrays.keys():
        known = Statistics(*(torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma")))
    if "arr_0" in arrays:
        return replace(open_drawn(path), inception=known)
    if known is None:
        raise ValueError(f"{path} holds {', '.join(arrays)}; it must hold arr_0, or mu and sigma")
    return known


def open_drawn(path: str) -> Pictures:
    """The pictures of an .npz: `arr_0`, uint8 (N, H, W, 3)."""
    array = read_arrays(path).get("arr_0")
    if array is None or array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        shape = None if array is None else (str(array.dtype), array.shape)
        raise ValueError(f"{path} must hold pictures as arr_0, uint8 (N, height, width, 3), but there is {shape}")
    pixels = torch.from_numpy(array).permute(0, 3, 1, 2)
    return Pictures(count=len(pixels), picture=lambda i: pixels[i])


def read_arrays(path: str) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz; ValueError where there is none."""
    try:
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # numpy leaves a broken one open
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is neither a folder of pictures nor an .npz of arrays ({error})") from None


def extract(pictures: Pictures, extractor: Extractor) -> Tensor:
    """Features (N, F) of all pictures."""
    return torch.cat([extractor.features(pixels)[0] for pixels in pictures.batches()])


def load_reference(pictures: Pictures | Statistics, extractor: Extractor, *, cache: Path) -> Reference:
    """What is known of real pictures, from `cache` where the same extractor has seen the same pictures before.

    A distance on Inception's features is taken to the statistics that came with the pictures, as ADM's evaluator does;
    precision and recall to the pictures.
    """
    if isinstance(pictures, Statistics):
        return Reference(statistics=pictures, features=None)
    seen = digest_chunks(str(tuple(p.shape)).encode() + p.contiguous().numpy().tobytes() for p in pictures.batches())
    path = cache / f"{extractor.name}-{extractor.digest}-{seen}.npz"
    if not path.is_file():
        features = extract(pictures, extractor)
        found = statistics(features)
        cache.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as incomplete, incomplete.open("wb") as file:
            np.savez(file, mu=found.mean.numpy(), sigma=found.covariance.numpy(), features=features.numpy())
    arrays = read_arrays(str(path))
    mean, covariance, features = (torch.from_numpy(arrays[name]) for name in ("mu", "sigma", "features"))
    known = pictures.inception if extractor.is_inception else None
    return Reference(statistics=known or Statistics(mean, covariance), features=features)
