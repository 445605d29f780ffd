"""Pictures are read by the rank that trains on them: no other decodes them, and all see the same documents."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image as PILImage
from PIL import ImageFile

from monoformer.batch import Batch
from monoformer.config.data import FolderData
from monoformer.config.run import RunConfig
from monoformer.data.build import build_source
from monoformer.data.loader import Loader
from monoformer.data.skipped import BadDocument
from monoformer.data.windows import Numbered
from monoformer.document import Document, Image, Text
from monoformer.packing import Row, collate, pack
from monoformer.pretrained import build_sequencer
from monoformer.sequence import Plan
from monoformer.train.build import build_loader, plan_all, read_row
from monoformer.train.checkpoint import checkpoints, read_progress
from monoformer.train.metrics import read_metrics
from monoformer.train.parallel import ALONE, Ranks
from tests import tiny
from tests.ranks import together

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

PICTURES, TORN = 240, 7
ROWS, STEPS = 4, 5
"""Rows of a step, of all ranks together."""
States = list[tuple[list[list[int]], str]]
"""Of every step: the documents of its rows, and the state after it."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run on photographs of three shapes, mirrored at random; every so many-th breaks off in its middle."""
    root = tmp_path_factory.mktemp("later") / "photos"
    for number in range(PICTURES):
        path = root / "red" / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = ((24, 24), (40, 20), (20, 33))[number % 3]
        noise = Random(number).randbytes(3 * width * height)
        PILImage.frombytes("RGB", (width, height), noise).save(path, quality=95)
        if number % TORN == 3:
            path.write_bytes(path.read_bytes()[:-300])
    data = FolderData(root=str(root), shape="bucket", buckets=tiny.SIZES, flip=True)
    return tiny.run_config(root / "run", data=data, train={"skip_limit": 0.5})


def loader(
    config: RunConfig, *, world: int = 1, rank: int = 0, readers: int = 1, prefetch: int = 0
) -> Loader[list[Row]]:
    """A rank's rows, its pictures read; nothing is read ahead."""
    sequencer = build_sequencer(config.model, tiny.tokenizer(), config.sequence)
    length, source = config.sequence.row, build_source(config.data, seed=config.seed, later=True)

    def pack_window(documents: Numbered) -> tuple[list[list[Plan]], dict[int, BadDocument]]:
        plans, bad = plan_all(sequencer, documents, length=length, seed=config.seed)
        return pack(plans, length=length, seed=config.seed), bad

    return Loader(
        source,
        pack_window,
        list,
        read=partial(read_row, sequencer),
        window=config.sequence.window,
        rows=ROWS // world,
        rank=rank,
        world=world,
        prefetch=prefetch,
        readers=readers,
        skip_limit=config.train.skip_limit,
    )


def read_together(config: RunConfig, *, world: int, count: int = STEPS, state: str = "", **options: int) -> States:
    """Ranks in step, each told what all of them found."""
    with ExitStack() as stack:
        ranks = [stack.enter_context(loader(config, world=world, rank=rank, **options)) for rank in range(world)]
        for own in ranks if state else ():
            own.load_state_dict(json.loads(state))
        read = []
        for _ in range(count):
            rows = [[layout.document for layout in row] for own in ranks for row in next(own)]
            found = {number: bad for own in ranks for number, bad in own.found.items()}
            for own in ranks:
                own.note(found)
            states = {json.dumps(own.state_dict()) for own in ranks}
            assert len(states) == 1, "every rank has counted the same"
            read.append((rows, states.pop()))
    return read


class Decoded:
    """Pictures that are decoded, by name of their file; opening them alone does not count."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.names: Counter[str] = Counter()
        lock, load = threading.Lock(), ImageFile.ImageFile.load

        def counted(picture: ImageFile.ImageFile) -> object:
            with lock:
                self.names[Path(str(picture.filename)).name] += bool(picture.tile)  # empty once it is decoded
            return load(picture)

        patch.setattr(ImageFile.ImageFile, "load", counted)


@pytest.mark.parametrize("shape", ["bucket", "crop"])
def test_each_of_four_ranks_decodes_the_pictures_of_its_rows_alone(
    config: RunConfig, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(config.data, FolderData)
    if shape == "crop":
        config = replace(config, data=replace(config.data, shape="crop", buckets=(), size=8))
    shares = []
    for rank in range(4):
        with monkeypatch.context() as patch, loader(config, world=4, rank=rank) as own:
            decoded = Decoded(patch)
            rows = [row for batch in islice(own, 6) for row in batch]
            assert all(not block.pixels.is_meta for row in rows for layout in row for block in layout.blocks)
            documents = [layout for row in rows for layout in row]
            assert sum(decoded.names.values()) == len(documents) + len(own.found) > 8
            shares.append(decoded.names)
    numbers = [name for names in shares for name in names.elements()]
    assert len(numbers) == len(set(numbers)) <= PICTURES, "no picture is decoded by two"


def test_where_all_pictures_get_one_size_those_of_others_are_not_even_opened(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(config.data, FolderData)
    data = replace(config.data, shape="crop", buckets=(), size=8)
    source = iter(build_source(data, seed=3, later=True))
    monkeypatch.setattr(PILImage, "open", None)
    images = [image for document in islice(source, 50) if not isinstance(document, BadDocument)
              for image in document.images]  # fmt: skip
    assert len(images) == 50
    assert {(image.has_pixels, tuple(image.pixels.shape)) for image in images} == {(False, (3, 8, 8))}


def test_any_number_of_ranks_reads_the_same_documents_and_counts_the_same(config: RunConfig) -> None:
    alone = read_together(config, world=1, count=8)
    assert read_together(config, world=2, count=8) == read_together(config, world=4, count=8) == alone
    assert read_together(config, world=2, count=8, readers=3, prefetch=2) == alone
    numbers = [number for rows, _ in alone for row in rows for number in row]
    late = json.loads(alone[-1][1])["late"]["photos"]["skipped"]["broken picture"]
    source = islice(build_source(config.data, seed=config.seed), max(numbers) + 1)
    torn = {number for number, document in enumerate(source) if isinstance(document, BadDocument)}
    assert late["count"] > 4
    assert not torn & set(numbers)
    assert all(f"document {number}: " in said for number, said in zip(sorted(torn), late["examples"], strict=False))
    assert set(range(min(numbers), max(numbers) // 12 * 12)) <= set(numbers) | torn, "no other document is missing"


def test_it_resumes_exactly_with_any_number_of_ranks(config: RunConfig) -> None:
    straight = read_together(config, world=2, count=10)
    for number in range(0, 8, 2):
        for world in (1, 4):
            assert read_together(config, world=world, count=2, state=straight[number][1]) == straight[number + 1 :][:2]


def test_too_many_broken_pictures_end_every_rank_at_the_same_step(config: RunConfig) -> None:
    config = replace(config, train=replace(config.train, skip_limit=0.05))
    said = []
    for world in (1, 4):
        with pytest.raises(ValueError, match=r"documents of the source photos .*broken picture.*skip-limit") as failure:
            read_together(config, world=world, count=60)
        said.append(str(failure.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("readers", [1, 3])
def test_batches_are_to_the_bit_those_of_pictures_read_at_once(config: RunConfig, readers: int, tmp_path: Path) -> None:
    """Where no picture is broken; one is left out of its row, when the row has been made."""
    assert isinstance(config.data, FolderData)
    whole = [path for path in Path(config.data.root).rglob("*.jpg") if int(path.stem) % TORN != 3]
    root = tmp_path / "red"
    root.mkdir()
    for path in whole:
        (root / path.name).symlink_to(path)
    config = replace(config, data=replace(config.data, root=str(root.parent)))
    config = replace(config, train=replace(config.train, readers=readers))
    batches = []
    for later in (False, True):
        source = build_source(config.data, seed=config.seed, later=later)
        with build_loader(config, source, tiny.tokenizer()) as batched:
            batches.append(list(islice(batched, 12)))
    assert sum(batch.targets for batch in batches[0]) > 30
    for now, later_on in zip(*batches, strict=True):
        assert list(values(now)) == list(values(later_on))


def values(batch: Batch) -> Iterator[object]:
    """All that a batch holds, as values that compare."""
    yield [getattr(batch, name).tolist() for name in ("ids", "positions", "document", "end", "private", "labels")]
    for slots in batch.images:
        names = ("pixels", "document", "number", "picture", "row", "start", "noised", "draw", "noise_limit")
        yield slots.grid, [getattr(slots, name).tolist() for name in names]


def test_a_row_of_nothing_but_broken_pictures_is_padding(config: RunConfig) -> None:
    def broken() -> torch.Tensor:
        raise BadDocument("torn", cause="broken picture")

    sequencer = tiny.sequencer()
    plan = sequencer.plan(Document((Image.of_size((8, 8), later=broken), Text("red"))), 5, seed=0)
    row, bad = read_row(sequencer, [plan])
    assert (row, [str(one) for one in bad.values()]) == ([], ["torn"])
    batch = collate([row], length=20, pad=0)
    assert (batch.documents, batch.labelled, batch.targets, batch.padding) == (0, 0, 0, 1.0)


def finish(ranks: Ranks, config: RunConfig) -> None:
    stream = build_source(config.data, seed=config.seed, later=True)
    trainer = tiny.trainer(config, stream=stream, ranks=ranks)
    assert trainer.run()


def session(ranks: Ranks, config: RunConfig, strict: RunConfig) -> None:
    """In every process: a run to its half and on to its end, and one that allows too few broken pictures."""
    finish(ranks, replace(config, train=replace(config.train, steps=3)))
    finish(ranks, config)
    with pytest.raises(ValueError, match=r"documents of the source photos cannot be used.*train\.skip-limit"):
        finish(ranks, strict)


def told(config: RunConfig) -> list[dict[str, float]]:
    names = ("step", "skipped", "documents", "padding", "text_loss", "image_loss")
    return [{name: line[name] for name in names} for line in read_metrics(config.path / "metrics.jsonl")]


def test_processes_train_on_the_same_documents_and_count_them_together(config: RunConfig, tmp_path: Path) -> None:
    train = replace(config.train, steps=6, pass_rows=1, checkpoint_every=3)
    one, two, strict = (replace(config, folder=str(tmp_path / name), train=train) for name in ("one", "two", "strict"))
    finish(ALONE, one)
    together(session, two, replace(strict, train=replace(train, steps=60, skip_limit=0.05)), world=2)
    lines = told(one)
    torch.testing.assert_close(told(two), lines, rtol=1e-5, atol=0.0)
    assert lines[0]["skipped"] < lines[-1]["skipped"]
    assert (tmp_path / "one" / "skipped.json").read_text() == (tmp_path / "two" / "skipped.json").read_text()
    saved = checkpoints(tmp_path / "strict" / "checkpoints")[-1]
    assert 0 < read_progress(saved)["step"] < 60, "what was learned is kept"
