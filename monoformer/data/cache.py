"""Caches of latents: a folder of documents whose pictures went through the autoencoder once, and how it is read.

    encoding.json             what is encoded, with which seed, by which autoencoder; written first
    documents-00000.parquet   documents in the order of their stream, as JSON; a picture in them is a key
    pictures-00000.parquet    every different picture once: key, size, mean and deviation of its latent
    cache.json                written last, when all is there

A broken picture is noted where it stands: its document is found bad when its pictures are read, as in the source. Knows
nothing of tokens or models. Invariant: with the seed that it was encoded with, the first pass over a cache is the very
stream that was encoded, document by document; what comes after is shuffled anew.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from monoformer.autoencoder import Autoencoder, LatentAutoencoder
from monoformer.config.data import DataConfig, SourceConfig, caches
from monoformer.config.run import from_json
from monoformer.config.sources import CacheData, Sizes
from monoformer.data.skipped import BadDocument
from monoformer.data.source import Order
from monoformer.document import Document, Image, Segment, Text

if TYPE_CHECKING:
    import datasets

ENCODING, RECORD = "encoding.json", "cache.json"
DOCUMENTS, PICTURES = "documents", "pictures"
"""Beginnings of the shards' names."""


@dataclass(frozen=True, kw_only=True)
class EncodedBy:
    """An autoencoder, as far as latents depend on it: another decoder of the same latents is the same."""

    path: str
    """Its name in the configuration."""
    weights: str
    """Digest of the encoder's weights, in bfloat16, so that it does not depend on the precision of a run."""
    scale: tuple[float, ...]
    """latent = (z - shift) * scale, one number or one a channel."""
    shift: tuple[float, ...]
    """See `scale`."""
    channels: int
    """Channels of the latents."""
    down: int
    """Pixels along the side of one latent cell."""
    deviation: bool
    """Whether it has a posterior, whose deviation is stored beside the mean."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What a cache is made of."""

    by: EncodedBy
    source: SourceConfig
    """The source whose documents these are."""
    seed: int
    """Seed of the source."""
    documents: int
    """The first so many documents of its stream."""
    shard: int = 1024
    """Documents, and pictures, in a file."""


@dataclass(frozen=True, kw_only=True)
class CacheRecord:
    """A whole cache."""

    encoding: Encoding
    pictures: int
    """Different pictures in it."""
    sizes: Sizes
    """(height, width) of its pictures in pixels."""
    format_version: int = 1


class Cache:
    """A cache of latents, random access."""

    def __init__(self, config: CacheData, *, seed: int = 0) -> None:
        """Raises ValueError where the folder is no whole cache."""
        folder = Path(config.root)
        self.record = read_record(config.root)
        self.length = self.record.encoding.documents
        self._name, self._seed = config.root, seed
        self._documents, self._pictures = _table(folder, DOCUMENTS), _table(folder, PICTURES)
        columns = self._pictures.select_columns(["key", "height", "width"])[:]
        keys = np.array(columns["key"], dtype=np.int64)
        self._sizes = np.array([columns["height"], columns["width"]], dtype=np.int32)
        self._rows = np.argsort(keys)
        self._keys = keys[self._rows]
        self._order = Order(seed, self.length)

    def document(self, index: int) -> Document:
        """Document number `index` of the endless stream, its latents still to be read; BadDocument where the source had
        one.
        """
        epoch, place = divmod(index, self.length)
        as_encoded = epoch == 0 and self._seed == self.record.encoding.seed
        row = place if as_encoded else self._order.item(index)
        found = json.loads(self._documents[row]["document"])
        if "bad" in found:
            raise BadDocument(found["bad"], cause=found["cause"])
        return Document(tuple(self._segment(segment) for segment in found["segments"]))

    def _segment(self, found: Mapping[str, Any]) -> Segment:
        if "text" in found:
            return Text(found["text"], found.get("role"))
        if found["image"] is None:
            (height, width), later = found["size"], partial(_break, found["bad"], found["cause"])
        else:
            row = int(self._rows[np.searchsorted(self._keys, found["image"])])
            (height, width), later = self._sizes[:, row].tolist(), partial(self._moments, row)
        by = self.record.encoding.by
        shape = (1 + by.deviation, by.channels, height // by.down, width // by.down)
        return Image(
            pixels=torch.empty((3, height, width), dtype=torch.uint8, device="meta"),
            moments=torch.empty(shape, device="meta"),
            later=later,
            target=found.get("target", False),
            role=found.get("role"),
            noise_limit=found.get("noise_limit", 1.0),
        )

    def _moments(self, row: int) -> Tensor:
        """float32 (K, C, h, w) of a picture."""
        found, by = self._pictures[row], self.record.encoding.by
        parts = [np.frombuffer(found[name], dtype="<f4") for name in ("mean", "deviation") if name in found]
        shape = (len(parts), by.channels, found["height"] // by.down, found["width"] // by.down)
        return torch.from_numpy(np.stack(parts)).view(shape)


def _break(say: str, cause: str) -> Tensor:
    raise BadDocument(say, cause=cause)


def to_row(document: Document | BadDocument) -> str:
    """A document, its pictures read now, as the JSON of its row; what is as by default is left out."""
    if isinstance(document, BadDocument):
        return json.dumps({"bad": str(document), "cause": document.cause}, ensure_ascii=False)
    return json.dumps({"segments": [_to_json(segment) for segment in document.segments]}, ensure_ascii=False)


def _to_json(segment: Segment) -> dict[str, Any]:
    role = {"role": segment.role} if segment.role else {}
    if isinstance(segment, Text):
        return {"text": segment.text, **role}
    limit = {"noise_limit": segment.noise_limit} if segment.noise_limit != 1 else {}
    rest = {"target": segment.target, **role, **limit}
    try:
        return {"image": key_of(segment.read().pixels), **rest}
    except BadDocument as bad:
        size = list(segment.pixels.shape[1:])
        return {"image": None, "bad": str(bad), "cause": bad.cause, "size": size, **rest}


def key_of(pixels: Tensor) -> int:
    """64 bits of a picture's digest, signed, as parquet stores them. Mirrored, it is another picture."""
    content = repr(tuple(pixels.shape)).encode() + pixels.contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def describe(autoencoder: Autoencoder, *, path: str) -> EncodedBy:
    """What the latents of an autoencoder depend on. Raises ValueError for pixels, which are their own latents."""
    if not isinstance(autoencoder, LatentAutoencoder):
        raise ValueError("pixels are their own latents and need no cache; give the autoencoder, --autoencoder.path")
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(autoencoder.network.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):
            digest.update(name.encode())
            digest.update(value.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return EncodedBy(
        path=path,
        weights=digest.hexdigest(),
        scale=tuple(autoencoder.scale.flatten().tolist()),
        shift=tuple(autoencoder.shift.flatten().tolist()),
        channels=autoencoder.channels,
        down=autoencoder.down,
        deviation=autoencoder.has_posterior,
    )


def check_caches(data: DataConfig, autoencoder: Autoencoder, *, path: str) -> None:
    """Refuse caches that another autoencoder made than the run's, which `path` names."""
    for source in caches(data):
        made = read_record(source.root).encoding.by
        if not isinstance(autoencoder, LatentAutoencoder):
            raise ValueError(
                f"the cache {source.root} holds latents of {made.path!r}, but the run draws pixels; "
                f"give --autoencoder.path {made.path}"
            )
        own = describe(autoencoder, path=path)
        for name in ("weights", "scale", "shift", "channels", "down"):
            before, now = getattr(made, name), getattr(own, name)
            if before != now:
                raise ValueError(
                    f"the cache {source.root} was encoded by the autoencoder {made.path!r} ({name} {before}), but the "
                    f"run's is {path!r} ({name} {now}); give --autoencoder.path {made.path}, or encode again"
                )


def read_record(root: str) -> CacheRecord:
    """What a folder says of itself. Raises ValueError where it is no whole cache."""
    folder = Path(root)
    if (folder / ENCODING).is_file() and not (folder / RECORD).is_file():
        raise ValueError(f"{root} is a cache that is not whole yet; the same monoformer encode command goes on with it")
    try:
        return from_json(CacheRecord, json.loads((folder / RECORD).read_text(encoding="utf-8")), where=str(folder))
    except FileNotFoundError:
        raise ValueError(f"{root} is no cache of latents (it has no {RECORD}); monoformer encode writes one") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / RECORD} is damaged: {error}; encode again") from None


def shards(folder: Path, kind: str) -> list[Path]:
    """The finished files of a kind, in order."""
    return sorted(folder.glob(f"{kind}-*.parquet"))


def _table(folder: Path, kind: str) -> "datasets.Dataset":
    """The shards of a kind as one memory-mapped table."""
    import datasets

    files = [str(path) for path in shards(folder, kind)]
    try:
        table = datasets.load_dataset("parquet", data_files=files, split="train")
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"the {kind} of the cache {folder} cannot be read ({reason}); encode again") from error
    assert isinstance(table, datasets.Dataset)
    return table
