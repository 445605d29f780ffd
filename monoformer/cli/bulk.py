"""Many pictures of the lines of a file: on any number of processes, resumed, the same for every number of them.

Picture i shows line i modulo the lines, with the seed `seed + i`. Pictures are drawn in chunks of fixed numbers, each
by an engine that remembers nothing, and chunk c belongs to rank c modulo the ranks: so a picture's bits depend neither
on the ranks nor on where a run was killed, and more may be drawn later. Ranks share nothing but the folder. Invariant:
what has its own name is whole; what is not yet whole is called `.incomplete`; why a picture cannot be drawn says its
`.failed`, and it is left out.
"""

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from monoformer.config.run import to_json
from monoformer.device import choose
from monoformer.evaluate.digests import digest_chunks, digest_files
from monoformer.files import whole_file
from monoformer.generate.session import FailedRequestsError, RefusedRequestsError
from monoformer.pipeline import Pipeline

Form: TypeAlias = Literal["png", "webdataset"]
Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Bulk:
    """What is drawn, and where it goes."""

    prompts: tuple[str, ...]
    """Lines of the file."""
    count: int
    """Pictures in all."""
    folder: Path
    chunk: int = 64
    """Pictures that are drawn together."""
    form: Form = "png"
    """One file a picture, or one tar a chunk with pictures and prompts."""
    size: tuple[int, int] | None = None
    """Height and width; None: the model's default."""

    def chunks(self, rank: int, world: int) -> Iterator[range]:
        """The pictures of this rank's chunks."""
        for number in range(rank, -(-self.count // self.chunk), world):
            yield range(number * self.chunk, min((number + 1) * self.chunk, self.count))

    def path(self, index: int) -> Path:
        """The file that holds a picture."""
        if self.form == "png":
            return self.folder / f"{index:08d}.png"
        return self.folder / f"{index // self.chunk:06d}.tar"

    @property
    def whole(self) -> Path:
        """The file that holds all pictures."""
        return self.folder / "pictures.npz"

    def is_done(self, chunk: range) -> bool:
        """Whether all of a chunk is written, but for what cannot be drawn."""
        drawn = self.drawn(chunk)
        if self.form == "png":
            return all(self.path(index).is_file() for index in drawn)
        if not self.path(chunk[0]).is_file():
            return False
        with tarfile.open(self.path(chunk[0])) as file:  # of a smaller count the last one holds fewer
            return len(file.getnames()) == 2 * len(drawn)

    def mark(self, index: int) -> Path:
        """The file that says why a picture cannot be drawn, where it cannot."""
        return self.folder / f"{index:08d}.failed"

    def drawn(self, chunk: range) -> list[int]:
        """The pictures of a chunk but those that cannot be drawn."""
        return [index for index in chunk if not self.mark(index).is_file()]

    def write(self, chunk: range, found: list[PILImage.Image | str]) -> None:
        """Write a chunk: pictures, or why one cannot be drawn."""
        pictures: list[tuple[int, PILImage.Image]] = []
        for index, picture in zip(chunk, found, strict=True):
            if isinstance(picture, str):
                _write_whole(self.mark(index), f"{picture}\n".encode())
            else:
                pictures.append((index, picture))
        if self.form == "png":
            for index, picture in pictures:
                _write_whole(self.path(index), _png(picture))
            return
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as file:
            for index, picture in pictures:
                for name, content in (("png", _png(picture)), ("txt", self.prompt(index).encode())):
                    entry = tarfile.TarInfo(f"{index:08d}.{name}")
                    entry.size = len(content)
                    file.addfile(entry, io.BytesIO(content))
        _write_whole(self.path(chunk[0]), tar.getvalue())

    def prompt(self, index: int) -> str:
        """What a picture shows."""
        return self.prompts[index % len(self.prompts)]

    def read(self, chunk: range) -> Iterator[Array]:
        """The pictures of a written chunk, uint8 (H, W, 3)."""
        if self.form == "png":
            for index in self.drawn(chunk):
                yield _pixels(self.path(index).read_bytes())
            return
        with tarfile.open(self.path(chunk[0])) as file:
            for index in self.drawn(chunk):
                entry = file.extractfile(f"{index:08d}.png")
                assert entry is not None, "a shard without its picture"
                yield _pixels(entry.read())


def ranks() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says; (0, 1) without it."""
    rank, world = (os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    return int(rank), int(world)


def own_device(name: str) -> str:
    """The device of that name; among several processes of one machine each takes the GPU of its own number."""
    local, chosen = os.environ.get("LOCAL_RANK", ""), choose(name)
    return f"cuda:{local}" if local and chosen.type == "cuda" and chosen.index is None else name


def draw_all(pipeline: Pipeline, bulk: Bulk, given: dict[str, Any], *, rank: int, world: int) -> Path | None:
    """Draw this rank's pictures that are missing; where none is missing any more, all as one .npz, and its path."""
    pipeline.prepare_pictures()
    bulk.folder.mkdir(parents=True, exist_ok=True)
    _check_same(pipeline, bulk, given, rank=rank)
    seed = given.get("seed", pipeline.pretrained.generate.seed)
    settings = {name: value for name, value in given.items() if name != "seed"}
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    chunks = list(bulk.chunks(rank, world))
    with Progress(*columns, console=Console(stderr=True), disable=rank != 0) as bar:
        task = bar.add_task("pictures" if world == 1 else f"pictures of rank {rank}", total=sum(map(len, chunks)))
        for chunk in chunks:
            if not bulk.is_done(chunk):
                pipeline.engine.reader.slots.forget()
                prompts, seeds = [bulk.prompt(index) for index in chunk], [seed + index for index in chunk]
                found = _draw(pipeline, prompts, size=bulk.size, seed=seeds, **settings)
                for index, why in zip(chunk, found, strict=True):
                    if isinstance(why, str):
                        bar.console.print(f"picture {index} cannot be drawn: {why}", markup=False)
                bulk.whole.unlink(missing_ok=True)  # it does not hold these
                bulk.write(chunk, found)
            bar.advance(task, len(chunk))
    return _gather(bulk, rank=rank) if all(bulk.is_done(chunk) for chunk in bulk.chunks(0, 1)) else None


def _draw(pipeline: Pipeline, prompts: list[str], *, seed: list[int], **settings: Any) -> list[PILImage.Image | str]:
    """A picture of each prompt, or why it cannot be drawn. Raises ValueError where no prompt could be, as settings are
    wrong.
    """
    try:
        return [*pipeline.generate_images(prompts, seed=seed, **settings)]
    except FailedRequestsError as error:
        return [end.error if end.error or end.made is None else end.made.images[0].to_pil() for end in error.ends]
    except RefusedRequestsError as error:
        errors = error.errors
    if all(errors):
        pipeline.generate_images("", seed=seed[0], **settings)
    good = [place for place, error in enumerate(errors) if not error]
    others = iter(_draw(pipeline, [prompts[p] for p in good], seed=[seed[p] for p in good], **settings) if good else ())
    return [error or next(others) for error in errors]


LATER = {"precision", "autoencoder"}
"""What the first folders do not say of themselves."""


def autoencoder_of(path: str) -> str:
    """Which autoencoder it is: a folder by its content, wherever it lies; else its name; nothing for pixels."""
    files = sorted(file for file in Path(path).glob("*") if path and file.suffix in (".json", ".safetensors"))
    return digest_files(files) if files else path


def _check_same(pipeline: Pipeline, bulk: Bulk, given: dict[str, Any], *, rank: int) -> None:
    """Refuse to go on in the folder of another command."""
    weights = pipeline.pretrained.model.state_dict().values()
    digest = digest_chunks(weight.detach().float().cpu().numpy().tobytes() for weight in weights)
    described = {
        "model": digest,
        "precision": str(pipeline.pretrained.model.tokens.weight.dtype).removeprefix("torch."),
        "autoencoder": autoencoder_of(pipeline.pretrained.autoencoder.path),
        "prompts": hashlib.sha256("\n".join(bulk.prompts).encode()).hexdigest(),
        "count": bulk.count,
        "chunk": bulk.chunk,
        "form": bulk.form,
        "size": None if bulk.size is None else list(bulk.size),
        "generate": to_json(pipeline.pretrained.generate),
        "given": json.loads(json.dumps(given)),
    }
    path, grows = bulk.folder / "bulk.json", False
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        grows = bulk.count > before.get("count", bulk.count)
        before["count"] = bulk.count if grows else before.get("count")  # a picture depends on its number alone
        known = described.keys() - (LATER - before.keys())
        wrong = sorted(name for name in known if described[name] != before.get(name))
        if wrong:
            said = "; ".join(difference(name, before.get(name), described[name]) for name in wrong)
            raise ValueError(f"{bulk.folder} holds pictures of another command: {said}; give another --out")
    else:
        _write_whole(path, (json.dumps(described, indent=2) + "\n").encode(), rank=rank)
    if grows:
        _write_whole(path, (json.dumps(described, indent=2) + "\n").encode(), rank=rank)


def difference(name: str, before: Any, now: Any) -> str:
    """What was another then: of settings each with both values, of what is known by its digest the name alone."""
    if name in ("model", "prompts", "autoencoder"):
        return f"another {name.removesuffix('s')}" + (" file" if name == "prompts" else "")
    if isinstance(before, dict) and isinstance(now, dict):
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        return ", ".join(
            f"{key} was {before.get(key, 'not given')} and is {now.get(key, 'not given')}" for key in changed
        )
    return f"{name} was {before} and is {now}"


def _gather(bulk: Bulk, *, rank: int) -> Path:
    """All pictures as `arr_0`, uint8 (N, H, W, 3), in ADM's form; they are never all in memory.

    Raises ValueError where none could be drawn.
    """
    path, count = bulk.whole, sum(len(bulk.drawn(chunk)) for chunk in bulk.chunks(0, 1))
    if path.is_file() and _count(path) == count:
        return path
    first = next((pixels for chunk in bulk.chunks(0, 1) for pixels in bulk.read(chunk)), None)
    if first is None:
        raise ValueError(f"none of the {bulk.count} pictures can be drawn: {bulk.mark(0).read_text().strip()}")
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape)}
    with (
        whole_file(path, mark=f".{rank}") as incomplete,
        zipfile.ZipFile(incomplete, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
        for chunk in bulk.chunks(0, 1):
            for pixels in bulk.read(chunk):
                file.write(pixels.tobytes())
    return path


def _count(path: Path) -> int:
    """How many pictures an .npz holds."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        np.lib.format.read_magic(file)
        return int(np.lib.format.read_array_header_1_0(file)[0][0])


def _write_whole(path: Path, content: bytes, *, rank: int = 0) -> None:
    with whole_file(path, mark=f".{rank}") as incomplete:
        incomplete.write_bytes(content)


def _png(picture: PILImage.Image) -> bytes:
    found = io.BytesIO()
    picture.save(found, format="PNG")
    return found.getvalue()


def _pixels(content: bytes) -> Array:
    with PILImage.open(io.BytesIO(content)) as picture:
        return np.array(picture.convert("RGB"))
