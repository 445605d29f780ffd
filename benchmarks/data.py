"""Whether the loader keeps up with a training step, and how fast it is alone.

python benchmarks/data.py --files PHOTOS.parquet         # folder of JPEGs, parquet, webdataset; minutes on a CPU
python benchmarks/data.py                                # of drawn scenes, which are smoother than photographs
python benchmarks/data.py --readers 1 2 4 8 --steps 0    # the loader alone

The inputs are made in a temporary folder: JPEGs as large as those of real training sets, each a mosaic of the pictures
at hand, so that it holds as much detail as a photograph of its size. No loader reads a picture twice. First a consumer
that does nothing but read, alone and as one of several processes, which decodes its share of the pictures; then real
training on the same loader, the step of train_step.py, whose autoencoder is nothing but numbers. `data_wait` is the
share of its time that it waited, as in `metrics.jsonl`, without the first step, which waits for the first window
(`first_wait_seconds`). A table, then one line of JSON.
"""

import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import tyro
from network import Latents, report
from PIL import Image as PILImage

from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.data import FolderData, ParquetData, ScenesData, SequenceConfig, SourceConfig, TokenizerConfig
from monoformer.config.model import ModelConfig
from monoformer.config.run import RunConfig
from monoformer.config.sources import StreamData
from monoformer.config.train import AdamWConfig, TrainConfig
from monoformer.data.build import build_source
from monoformer.data.images import picture_files
from monoformer.data.pictures import read_picture
from monoformer.data.source import usable
from monoformer.document import Document, Text
from monoformer.packing import collate, pack
from monoformer.presets.monoformer import PROMPTS
from monoformer.pretrained import build_sequencer
from monoformer.randomness import generator
from monoformer.tokenizer import Tokenizer
from monoformer.train.build import build_loader, build_run, plan_all
from monoformer.train.metrics import read_metrics
from monoformer.train.parallel import Ranks
from monoformer.train.trainer import Trainer

Kind: TypeAlias = Literal["folder", "parquet", "webdataset"]

TILE = 96
"""Side in pixels of a mosaic's pieces."""
WORDS = 8
"""Of a caption, so that every document fits its row."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Pictures, a loader, and the network that it feeds (by default that of train_step.py)."""

    files: tuple[str, ...] = ()
    """Parquet files of the pictures that the inputs are made of; none: drawn scenes."""
    image_column: str = "image"
    caption: str = "{captions}"
    kinds: tuple[Kind, ...] = ("folder", "parquet", "webdataset")
    pictures: int = 1000
    """Pictures of each kind."""
    height: int = 375
    width: int = 500
    quality: int = 90
    size: int = 256
    """Side of the pictures that the network sees."""
    window: int = 32
    """Documents packed together."""
    documents: int = 768
    """Documents that the consumer reads which does nothing else."""
    readers: tuple[int, ...] = (1, 2)
    """Threads that decode; training takes the last."""
    worlds: tuple[int, ...] = (8,)
    """Numbers of processes of which one reads its rows, with as many readers as training."""
    steps: int = 24
    """Training steps for each kind; 0: none."""
    sequences: int = 4
    text: int = 32
    """Tokens of a row beside its picture's."""
    network: int = 512
    """Width of the network."""
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    mlp_width: int = 1408
    vocabulary: int = 8192
    patch: int = 2
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        most = int(0.9 * self.pictures)  # a source holds some out
        if max(self.documents, self.sequences * self.steps) + 2 * self.window > most:
            raise ValueError(f"{most} pictures are too few to be read once; raise --pictures, or lower what is read")


def make_inputs(case: Case, folder: Path) -> tuple[dict[Kind, SourceConfig], list[str], int]:
    """The same JPEGs as a folder, parquet and tars; their captions, and the mean number of bytes of a JPEG."""
    given = ParquetData(files=case.files, image_column=case.image_column, caption=case.caption, size=TILE)
    source = build_source(given if case.files else ScenesData(size=TILE))
    found = [document for document in usable(source, min(400, case.pictures)) if document.images]
    pieces = [document.images[0].to_pil() for document in found]
    captions = [" ".join(text_of(found[at % len(found)]).split()[:WORDS]) for at in range(case.pictures)]
    jpegs = [jpeg(case, pieces, number) for number in range(case.pictures)]
    makers: dict[Kind, Callable[..., FolderData | ParquetData | StreamData]] = {
        "folder": make_folder, "parquet": make_parquet, "webdataset": make_tars,
    }  # fmt: skip
    made = {kind: makers[kind](folder / kind, jpegs, captions) for kind in case.kinds}
    sized: dict[Kind, SourceConfig] = {kind: replace(config, size=case.size) for kind, config in made.items()}
    return sized, captions, sum(map(len, jpegs)) // len(jpegs)


def text_of(document: Document) -> str:
    """The first text of a document."""
    return next(segment.text for segment in document.segments if isinstance(segment, Text))


def jpeg(case: Case, pieces: list[PILImage.Image], number: int) -> bytes:
    """A mosaic of pieces drawn by number, encoded."""
    mosaic = PILImage.new("RGB", (case.width, case.height))
    places = [(x, y) for y in range(0, case.height, TILE) for x in range(0, case.width, TILE)]
    for place, at in zip(places, torch.randint(len(pieces), (len(places),), generator=generator(number)), strict=True):
        mosaic.paste(pieces[int(at)], place)
    content = io.BytesIO()
    mosaic.save(content, "JPEG", quality=case.quality)
    return content.getvalue()


def make_folder(root: Path, jpegs: list[bytes], captions: list[str]) -> FolderData:
    """A folder for each of a hundred classes, with a file of their names, as ImageNet has it."""
    for number, content in enumerate(jpegs):
        path = root / f"n{number % 100:08}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    names = root / "classes.txt"
    names.write_text("".join(f"n{at:08} {captions[at % len(captions)]}\n" for at in range(100)), encoding="utf-8")
    return FolderData(root=str(root), class_names=str(names), prompts=PROMPTS, draw=1.0, describe=0.0)


def make_parquet(root: Path, jpegs: list[bytes], captions: list[str]) -> ParquetData:
    """One parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir()
    table = pa.table({"image": [{"bytes": content, "path": None} for content in jpegs], "caption": captions})
    pq.write_table(table, root / "pictures.parquet", row_group_size=100)
    return ParquetData(files=(str(root / "pictures.parquet"),), draw=1.0, describe=0.0)


def make_tars(root: Path, jpegs: list[bytes], captions: list[str]) -> StreamData:
    """Four tars of NUMBER.jpg and NUMBER.txt."""
    root.mkdir()
    files = tuple(str(root / f"{shard}.tar") for shard in range(4))
    for shard, file in enumerate(files):
        with tarfile.open(file, "w") as tar:
            for number in range(shard, len(jpegs), 4):
                for ending, content in (("jpg", jpegs[number]), ("txt", captions[number].encode())):
                    entry = tarfile.TarInfo(f"{number:06}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return StreamData(files=files, image_column="jpg", caption="{txt}", draw=1.0, describe=0.0)


def build_config(case: Case, data: SourceConfig, folder: Path) -> RunConfig:
    """The run that reads such data; its pictures become latents of an eighth of their size."""
    cell = 8 * case.patch
    row = case.text + (case.size // cell) ** 2
    model = ModelConfig(
        width=case.network, layers=case.layers, heads=case.heads, kv_heads=case.kv_heads, mlp_width=case.mlp_width,
        vocabulary=case.vocabulary, context=row, patch=case.patch, channels=4, down=8, time="add", qk_norm=False,
        image_sizes=((case.size, case.size),),
    )  # fmt: skip
    train = TrainConfig(
        steps=max(case.steps, 1), rows=case.sequences, optimizer=AdamWConfig(), precision=case.precision, warmup=1,
        device=case.device, readers=case.readers[-1], log_every=1, tensorboard=False,
    )  # fmt: skip
    return RunConfig(
        folder=str(folder / "run"),
        model=model,
        autoencoder=AutoencoderConfig(path="latents at hand"),
        tokenizer=TokenizerConfig(path=str(folder / "tokenizer")),
        data=data,
        sequence=SequenceConfig(row=row, window=case.window),
        train=train,
    )


def read_fast(case: Case, config: RunConfig, tokenizer: Tokenizer, readers: int, *, world: int = 1) -> float:
    """Documents a second, those of all processes, for a consumer that only reads and is the first of so many."""
    config = replace(config, train=replace(config.train, readers=readers, rows=case.sequences * world))
    source = build_source(config.data, seed=config.seed, readers=readers, later=True)
    with build_loader(config, source, tokenizer, ranks=Ranks(world=world)) as loader:
        started, documents = time.perf_counter(), 0
        while documents < case.documents:
            documents += world * next(loader).documents
        return documents / (time.perf_counter() - started)


def train(case: Case, config: RunConfig) -> dict[str, float]:
    """Real steps on the real loader: how long they and their waits are, beside steps on a batch at hand."""
    latents = Latents(case.size // 8)
    latents.down = 8
    trainer = Trainer(build_run(config, autoencoder=latents).parts)
    trainer.run()
    lines = read_metrics(config.path / "metrics.jsonl")
    waits = [line["data_wait"] * line["seconds"] for line in lines]
    seconds = [line["seconds"] for line in lines]
    return {
        "data_wait": sum(waits[1:]) / sum(seconds[1:]),
        "longest_wait_seconds": max(waits[1:]),
        "first_wait_seconds": waits[0],
        "median_step_seconds": statistics.median(seconds[1:]),
    }


def stages(case: Case, config: RunConfig, tokenizer: Tokenizer, *, count: int = 128) -> dict[str, float]:
    """Milliseconds a document in one thread: what a folder's pictures take, then what is done with them."""
    assert isinstance(config.data, FolderData)
    files = picture_files(Path(config.data.root))[:count]
    decode = each(load, files)
    picture = each(lambda path: read_picture(path, sizes=((case.size, case.size),), name=""), files)
    documents = list(enumerate(usable(build_source(config.data), len(files))))
    sequencer, length = build_sequencer(config.model, tokenizer, config.sequence), config.sequence.row
    plan = each(lambda one: plan_all(sequencer, [one], length=length, seed=0), documents)
    plans, _ = plan_all(sequencer, documents, length=length, seed=0)
    lay = each(sequencer.lay_out, plans)
    rows = [[sequencer.lay_out(plan) for plan in row] for row in pack(plans, length=length)]
    groups = [rows[at : at + case.sequences] for at in range(0, len(rows), case.sequences)]
    join = each(lambda group: collate(group, length=length, pad=tokenizer.pad), groups) / case.sequences
    return {"decode": decode, "resize": picture - decode, "plan": plan, "tokens": lay, "batch": join}


def load(path: Path) -> None:
    """Decode a picture whole."""
    with PILImage.open(path) as picture:
        picture.load()


def each(work: Callable[[Any], object], items: Iterable[Any]) -> float:
    """Milliseconds that `work` takes for one of the items; the median."""
    times: list[float] = []
    for item in items:
        started = time.perf_counter()
        work(item)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def main() -> None:
    """Make the inputs, read them and train on them."""
    import datasets

    case = tyro.cli(Case)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        datasets.config.HF_DATASETS_CACHE = str(folder / "cache")
        datasets.disable_progress_bars()
        inputs, captions, size = make_inputs(case, folder)
        tokenizer = Tokenizer.train([*captions, *PROMPTS], vocabulary=min(case.vocabulary, 2048))
        tokenizer.save(folder / "tokenizer")
        result: dict[str, Any] = {"bytes_per_picture": size, "threads": torch.get_num_threads()}
        for kind, data in inputs.items():
            config = build_config(case, data, folder / kind)
            config = replace(config, tokenizer=TokenizerConfig(path=str(folder / "tokenizer")))
            speeds = {str(count): read_fast(case, config, tokenizer, count) for count in case.readers}
            result[f"{kind}_documents_per_second"] = speeds
            result[f"{kind}_megabytes_per_second"] = {count: speed * size / 1e6 for count, speed in speeds.items()}
            result[f"{kind}_documents_per_second_as_one_of"] = {
                str(world): read_fast(case, config, tokenizer, case.readers[-1], world=world) for world in case.worlds
            }
            if kind == "folder":
                result["milliseconds_per_document"] = stages(case, config, tokenizer)
            if case.steps:
                result[f"{kind}_training"] = train(case, config)
        report("the loader", result, case)


if __name__ == "__main__":
    main()
