"""A source through the autoencoder, once: writes a cache of latents, in any number of processes, killed and resumed.

First the documents, then every different picture in them, shard by shard; a process takes every n-th shard. Knows
nothing of tokens or models. Invariant: a shard is a function of the encoding and its number alone and is renamed into
place when complete, so killed and resumed, and in any number of processes, the files are the same.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monoformer.autoencoder import Autoencoder, LatentAutoencoder
from monoformer.config.run import from_json, save_config
from monoformer.data.build import build_single, name_source
from monoformer.data.cache import (
    DOCUMENTS,
    ENCODING,
    PICTURES,
    RECORD,
    CacheRecord,
    Encoding,
    key_of,
    read_record,
    shards,
    to_row,
)
from monoformer.data.skipped import BadDocument
from monoformer.data.source import Indexed
from monoformer.document import Document
from monoformer.files import whole_file

BATCH = 64
"""Pictures that are read, then encoded together."""
PAUSE = 0.1
"""Seconds between two looks at what the other processes have done."""

Tell = Callable[[str, int, int], None]
"""tell(what, done, of): how far it is."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Where a picture is first seen."""

    key: int
    document: int
    place: int
    """Which of the document's images."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cache to be written."""

    folder: Path
    encoding: Encoding
    build: Callable[[torch.device], Autoencoder]
    """Builds the autoencoder on a device, in every process."""
    device: str = "cpu"
    """Its type: processes share out the GPUs."""

    @cached_property
    def wanted(self) -> list[Wanted]:
        """Every different picture in order of its first appearance; all documents must have been written."""
        import pyarrow.parquet as pq

        found: dict[int, Wanted] = {}
        number = 0
        for path in shards(self.folder, DOCUMENTS):
            for text in pq.read_table(path)["document"].to_pylist():
                images = [segment["image"] for segment in json.loads(text).get("segments", ()) if "image" in segment]
                for place, key in enumerate(images):
                    if key is not None:
                        found.setdefault(key, Wanted(key=key, document=number, place=place))
                number += 1
        return list(found.values())

    @property
    def document_shards(self) -> int:
        """Number of files of documents."""
        return -(-self.encoding.documents // self.encoding.shard)

    @property
    def has_all_documents(self) -> bool:
        """Whether every file of documents is there."""
        return len(shards(self.folder, DOCUMENTS)) == self.document_shards

    def look(self, tell: Tell) -> None:
        """Tell how far it is, by the files that are there."""
        size, encoding = self.encoding.shard, self.encoding
        tell(DOCUMENTS, min(len(shards(self.folder, DOCUMENTS)) * size, encoding.documents), encoding.documents)
        if self.has_all_documents:
            tell(PICTURES, min(len(shards(self.folder, PICTURES)) * size, len(self.wanted)), len(self.wanted))


def encode(job: Job, *, processes: int = 1, tell: Tell = lambda what, done, of: None) -> CacheRecord:
    """Write the cache, going on with what its folder holds.

    Raises ValueError where the folder holds another cache, or when a process ends before its work is done.
    """
    if processes < 1:
        raise ValueError(f"the number of processes must be at least 1, but is {processes}")
    _open_folder(job)
    if (job.folder / RECORD).is_file():
        return read_record(str(job.folder))
    if processes == 1:
        work(job, 0, 1, tell)
    else:
        _work_together(job, processes, tell)
    if not job.wanted:
        raise ValueError(
            f"the documents of {name_source(job.encoding.source)} hold no picture; there is no cache to make"
        )
    record = CacheRecord(encoding=job.encoding, pictures=len(job.wanted), sizes=_sizes(job.folder))
    _note(record, job.folder / RECORD)
    return record


def work(job: Job, rank: int, world: int, tell: Tell | None = None) -> None:
    """The work of one process: every `world`-th shard that is not there yet."""
    if world > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // world))
    reader = Reader(job.encoding)
    for number in range(rank, job.document_shards, world):
        _end_with_parent()
        path = _path(job, DOCUMENTS, number)
        if not path.is_file():
            first = number * job.encoding.shard
            last = min(first + job.encoding.shard, job.encoding.documents)
            _write(path, {"document": [to_row(reader.read(at)) for at in range(first, last)]})
        if tell:
            job.look(tell)
    while not job.has_all_documents:
        _end_with_parent()
        time.sleep(PAUSE)
    autoencoder = job.build(_device(job.device, rank))
    assert isinstance(autoencoder, LatentAutoencoder), "the encoding was described by such an autoencoder"
    for number in range(rank, -(-len(job.wanted) // job.encoding.shard), world):
        path = _path(job, PICTURES, number)
        if not path.is_file():
            first = number * job.encoding.shard
            _write(path, _encoded(job.wanted[first : first + job.encoding.shard], reader, autoencoder))
        if tell:
            job.look(tell)


class Reader:
    """Documents of a source by number, their pictures still to be read.

    A stream, which has no random access, is read from its start where need be.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._start()

    def _start(self) -> None:
        source, seed = self._encoding.source, self._encoding.seed
        self._source = build_single(source, split="train", seed=seed, name=name_source(source), later=True)
        self._documents, self._next = iter(self._source), 0
        self._last: Document | BadDocument = BadDocument("nothing was read yet", cause="nothing")

    def read(self, number: int) -> Document | BadDocument:
        """Document `number`; cheap in ascending order."""
        if number == self._next - 1:
            return self._last
        if isinstance(self._source, Indexed):
            self._source.load_state_dict({"index": number})
            self._documents, self._next = iter(self._source), number
        elif number < self._next:
            self._start()
        while self._next <= number:
            self._last = next(self._documents)
            self._next += 1
        return self._last


def _encoded(wanted: list[Wanted], reader: Reader, autoencoder: LatentAutoencoder) -> dict[str, list[Any]]:
    """The columns of a shard of pictures."""
    columns: dict[str, list[Any]] = {"key": [], "height": [], "width": [], "mean": []}
    if autoencoder.has_posterior:
        columns["deviation"] = []
    for start in range(0, len(wanted), BATCH):
        _end_with_parent()
        for keys, pixels in _by_size(wanted[start : start + BATCH], reader):
            mean, deviation = autoencoder.posterior(pixels)
            columns["key"] += keys
            columns["height"] += [pixels.shape[2]] * len(keys)
            columns["width"] += [pixels.shape[3]] * len(keys)
            columns["mean"] += _bytes(mean)
            if deviation is not None:
                columns["deviation"] += _bytes(deviation)
    return columns


def _by_size(wanted: list[Wanted], reader: Reader) -> Iterator[tuple[list[int], Tensor]]:
    """Keys and pixels (N, 3, H, W) of the pictures of each size."""
    found: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for one in wanted:
        document = reader.read(one.document)
        images = () if isinstance(document, BadDocument) else document.images
        pixels = images[one.place].read().pixels if len(images) > one.place else torch.empty(0)
        if key_of(pixels) != one.key:
            raise ValueError(
                f"document {one.document} is another one than when the encoding began: its source has changed; "
                f"encode again into a new folder"
            )
        found.setdefault(tuple(pixels.shape), []).append((one.key, pixels))
    for size in sorted(found):
        yield [key for key, _ in found[size]], torch.stack([pixels for _, pixels in found[size]])


def _bytes(latents: Tensor) -> list[bytes]:
    return [one.tobytes() for one in latents.float().cpu().numpy().astype("<f4")]


def _write(path: Path, columns: dict[str, list[Any]]) -> None:
    """A parquet file, complete or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with whole_file(path) as incomplete:
        pq.write_table(pa.table(columns), incomplete, compression="zstd" if "document" in columns else "none")


def _note(value: Encoding | CacheRecord, path: Path) -> None:
    """The JSON form, complete or not at all."""
    with whole_file(path) as incomplete:
        save_config(value, incomplete)


def _path(job: Job, kind: str, number: int) -> Path:
    return job.folder / f"{kind}-{number:05d}.parquet"


def _sizes(folder: Path) -> tuple[tuple[int, int], ...]:
    import pyarrow.parquet as pq

    tables = [pq.read_table(path, columns=["height", "width"]) for path in shards(folder, PICTURES)]
    pairs = {(row["height"], row["width"]) for table in tables for row in table.to_pylist()}
    return tuple(sorted(pairs))


def _open_folder(job: Job) -> None:
    """Note what the folder is to hold, or refuse one that holds something else."""
    path = job.folder / ENCODING
    if path.is_file():
        before = from_json(Encoding, json.loads(path.read_text(encoding="utf-8")), where=str(path))
        if before != job.encoding:
            raise ValueError(f"{job.folder} holds another cache than the one asked for ({path}); give another --out")
        return
    if job.folder.exists() and any(job.folder.glob("*.parquet")):
        raise ValueError(f"{job.folder} holds parquet files that are no cache; give another --out")
    job.folder.mkdir(parents=True, exist_ok=True)
    _note(job.encoding, path)


def _work_together(job: Job, processes: int, tell: Tell) -> None:
    """Start the processes and tell how far they are until all have ended."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(job, rank, processes), daemon=True) for rank in range(processes)]
    for worker in workers:
        worker.start()
    try:
        is_running = True
        while is_running:
            time.sleep(PAUSE)
            job.look(tell)
            is_running = any(worker.is_alive() for worker in workers)
            failed = [worker.exitcode for worker in workers if worker.exitcode]
            if failed:
                raise ValueError(
                    f"an encoding process ended with code {failed[0]} (its own message is above); what is written is "
                    f"kept, and the same command goes on"
                )
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _end_with_parent() -> None:
    """End a process whose parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit(1)


def _device(kind: str, rank: int) -> torch.device:
    """A device of that type; GPUs in turn."""
    return torch.device(kind, rank % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)
