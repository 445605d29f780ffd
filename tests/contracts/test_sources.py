"""What every source of documents promises: the same stream again, exact resume, no end, and a test split of its own."""

import json
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from monoformer.config.data import (
    DataConfig,
    FolderData,
    MixtureData,
    ParquetData,
    ScenesData,
    SourceConfig,
    TextData,
)
from monoformer.config.sources import ChatData, InterleavedData, StreamData
from monoformer.data.build import build_held_out, build_source
from monoformer.data.edits import edit_pairs, held_out
from monoformer.data.images import ParquetPictures
from monoformer.data.scenes import Scenes
from monoformer.data.skipped import BadDocument
from monoformer.data.source import Mixture, Source, choose, order, seed_of, usable
from monoformer.document import Document, Image, Text

SIZE = 16
NAMES = ("ball", "cube", "door", "fish", "goat", "hat", "jar")
TONES = ("light", "medium", "dark", "")


def folder(root: Path) -> SourceConfig:
    pictures = root / "pictures"
    for number in range(24):
        path = pictures / ("red_fox" if number % 2 else "owl") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (20, 24), (number * 10, 5, 100)).save(path)
    return FolderData(root=str(pictures), size=SIZE, prompt="Please draw {}.", flip=True)


def parquet(root: Path) -> SourceConfig:
    rows = []
    for number in range(28):
        path = root / f"cell{number}.png"
        PILImage.new("RGB", (18, 18), (number * 9, 200, 7)).save(path)
        content = {"bytes": path.read_bytes(), "path": path.name}
        captions = [NAMES[number // 4], f"a {NAMES[number // 4]}"]
        rows.append({"picture": content, "name": NAMES[number // 4], "tone": TONES[number % 4], "captions": captions})
    pq.write_table(pa.Table.from_pylist(rows), root / "table.parquet")
    edits = {"edit": 2.0, "edit_group": "name", "edit_column": "tone", "holdout": 2, "holdout_pairs": 3}
    return ParquetData(
        files=(str(root / "table.parquet"),), image_column="picture", caption="{captions}[, {tone}]", size=SIZE, **edits
    )


def text(root: Path) -> SourceConfig:
    (root / "books").mkdir()
    for book in range(3):
        paragraphs = [f"Paragraph {number} of book {book}. It says nothing else." for number in range(40)]
        (root / "books" / f"{book}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    return TextData(files=(str(root / "books"),), characters=100, holdout=0.2)


def scenes(root: Path) -> SourceConfig:
    return ScenesData(size=SIZE)


def mixture(root: Path) -> DataConfig:
    return MixtureData(sources=(folder(root), parquet(root), text(root)), weights=(2.0, 1.0, 0.5))


def emoji(root: Path) -> SourceConfig:
    path = Path(__file__).resolve().parents[3] / "shared" / "data" / "emoji128" / "train.parquet"
    if not path.is_file():
        pytest.skip(f"the real data is not here: no file {path}")
    edits = {"edit": 2.0, "edit_group": "name", "edit_column": "skin_tone", "holdout": 20, "holdout_pairs": 30}
    caption = "{name}[, {skin_tone} skin tone]"
    return ParquetData(files=(str(path),), caption=caption, size=SIZE, instruction="Make the skin {}.", **edits)


def picture(root: Path, number: int) -> Path:
    path = root / "own" / f"{number:02}.png"
    path.parent.mkdir(exist_ok=True)
    PILImage.new("RGB", (24, 20), (number * 8, 90, 40)).save(path)
    return path


def lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def chat(root: Path) -> SourceConfig:
    said = [
        {"messages": [{"role": "user", "content": f"draw {n}"}, {"role": "assistant", "content": [
            {"type": "image_url", "image_url": {"url": f"own/{picture(root, n).name}"}}]}]} if n % 2 else
        {"image": f"own/{picture(root, n).name}", "conversations": [
            {"from": "human", "value": f"<image>\nWhat is {n}?"}, {"from": "gpt", "value": f"number {n}"}]}
        for n in range(30)
    ]  # fmt: skip
    return ChatData(files=(lines(root / "chat.jsonl", said),), size=SIZE, holdout=0.2)


def interleaved(root: Path) -> SourceConfig:
    parts = [[{"text": f"This is {n}:", "role": "user"}, {"image": picture(root, n).name, "role": "assistant"}]
             for n in range(30)]  # fmt: skip
    file = lines(root / "pages.jsonl", [{"segments": segments} for segments in parts])
    return InterleavedData(files=(file,), images=str(root / "own"), size=SIZE, holdout=0.2)


def tars(root: Path) -> SourceConfig:
    for shard in range(3):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for n in range(12 * shard, 12 * shard + 12):
                tar.add(picture(root, n), arcname=f"{n}.png")
                (root / "words.txt").write_text(f"number {n}")
                tar.add(root / "words.txt", arcname=f"{n}.txt")
    files = tuple(str(root / f"{shard}.tar") for shard in range(3))
    prompts = ("Draw {}.", "{}, please")
    return StreamData(
        files=files, image_column="png", caption="a {txt}", size=SIZE, block=5, holdout=0.2, flip=True, prompts=prompts
    )


def talk(root: Path) -> SourceConfig:
    """Conversations in a stream, with pictures that lie beside their file."""
    said = [
        {"image": f"own/{picture(root, n).name}", "question": f"{n}?", "data": [f"<image> {n}", "yes"]}
        for n in range(20)
    ]
    return StreamData(files=(lines(root / "talk.jsonl", said),), chat=True, size=SIZE, block=8, holdout=0.2)


def stream(root: Path) -> SourceConfig:
    """Text alone, in two shards, parted into blocks that do not divide them."""
    files = tuple(lines(root / f"{shard}.jsonl", [{"said": f"{shard} says {n}"} for n in range(23)]) for shard in "ab")
    return StreamData(files=files, image_column="", caption="{said}.", block=7, holdout=0.2)


MAKERS: tuple[Callable[[Path], DataConfig], ...] = (
    folder, parquet, text, scenes, mixture, emoji, chat, interleaved, tars, stream, talk,
)  # fmt: skip


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.__name__)
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hub_cache: None) -> DataConfig:
    root = tmp_path_factory.mktemp(request.param.__name__)
    made: DataConfig = request.param(root)
    return made


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what `datasets` unpacks out of the user's own cache."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = str(tmp_path_factory.mktemp("hub"))


def content(document: Document) -> tuple[object, ...]:
    """A document as values that compare."""
    return tuple(
        (part.role, part.target, part.pixels.shape, part.pixels.numpy().tobytes())
        if isinstance(part, Image)
        else (part.role, part.text)
        for part in document.segments
    )


def good(document: Document | BadDocument) -> Document:
    assert isinstance(document, Document), document
    return document


def read(source: Source, count: int) -> list[tuple[object, ...]]:
    return [content(document) for document in usable(source, count)]


def test_the_same_seed_gives_the_same_stream_and_another_seed_another(config: DataConfig) -> None:
    first = read(build_source(config, split="train", seed=3), 40)
    assert first == read(build_source(config, split="train", seed=3), 40)
    assert first != read(build_source(config, split="train", seed=4), 40)


def test_pictures_that_are_read_later_are_the_same(config: DataConfig) -> None:
    now = read(build_source(config, split="train", seed=3), 40)
    later = list(usable(build_source(config, split="train", seed=3, later=True), 40))
    sizes = [[image.pixels.shape for image in document.images] for document in later]
    assert [content(document.read()) for document in later] == now
    assert sizes == [[image.pixels.shape for image in document.read().images] for document in later]
    waiting = [not image.has_pixels for document in later for image in document.images]
    assert not waiting or any(waiting) != isinstance(config, ScenesData), "scenes cost nothing to draw"


def test_resumes_at_any_point(config: DataConfig) -> None:
    expected = read(build_source(config, split="train", seed=3), 80)
    reader = build_source(config, split="train", seed=3)
    documents = iter(reader)
    for number in range(75):
        if number % 7 in (0, 1):
            saved = json.loads(json.dumps(reader.state_dict()))
            resumed = build_source(config, split="train", seed=3)
            read(resumed, number % 5)  # whatever was read before does not matter
            resumed.load_state_dict(saved)
            assert read(resumed, 5) == expected[number : number + 5]
        assert content(good(next(documents))) == expected[number]


def test_several_readers_in_another_thread_give_the_same_stream_and_states(config: DataConfig) -> None:
    expected = read(build_source(config, split="train", seed=3), 80)
    reader = build_source(config, split="train", seed=3, readers=3)
    with ThreadPoolExecutor(1) as elsewhere:  # as in the loader; `datasets` keeps things by thread
        documents = elsewhere.submit(read, reader, 30).result()
        saved = json.loads(json.dumps(reader.state_dict()))
        documents += elsewhere.submit(read, reader, 40).result()
    assert documents == expected[:70]
    reader.load_state_dict(saved)
    assert read(reader, 20) == expected[30:50]
    resumed = build_source(config, split="train", seed=3)
    resumed.load_state_dict(saved)
    assert read(resumed, 20) == expected[30:50]


def test_a_state_is_not_changed_by_reading_on(config: DataConfig) -> None:
    source = build_source(config, split="train", seed=3)
    read(source, 5)
    state = source.state_dict()
    before = json.dumps(state)
    read(source, 5)
    assert json.dumps(state) == before != json.dumps(source.state_dict())


def test_has_no_end(config: DataConfig) -> None:
    for split in ("train", "test"):
        assert len(read(build_source(config, split=split, seed=3), 300)) == 300


def test_pictures_have_the_size_asked_for_and_targets_the_role_of_the_assistant(config: DataConfig) -> None:
    for document in usable(build_source(config, split="train", seed=3), 60):
        for image in document.images:
            assert image.pixels.shape == (3, SIZE, SIZE)
            assert image.target == (image.role == "assistant")


def test_nothing_learned_is_in_the_test(config: DataConfig) -> None:
    def learned(document: Document) -> list[object]:
        """What the answer is made of: a drawn picture, else the whole document."""
        targets = [image.pixels.numpy().tobytes() for image in document.images if image.target]
        return list(targets) or [content(document)]

    train, test = (
        {part for document in usable(build_source(config, split=split, seed=3), 400) for part in learned(document)}
        for split in ("train", "test")
    )
    assert test
    assert not train & test


def test_a_foreign_state_is_refused(config: DataConfig) -> None:
    with pytest.raises(ValueError, match="resume with the configuration"):
        build_source(config, split="train", seed=3).load_state_dict({"elsewhere": 4})


def test_every_item_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    epochs = [tuple(order(7, epoch, 50)) for epoch in range(4)]
    assert len(set(epochs)) == 4
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)


def test_finite_sources_read_every_item_once_an_epoch(tmp_path: Path) -> None:
    config = text(tmp_path)
    stream = read(build_source(config, split="train", seed=1), 400)
    length = len(set(stream))
    epochs = [stream[start : start + length] for start in range(0, 3 * length, length)]
    assert 3 * length <= 400
    assert all(len(set(epoch)) == length for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_rows_and_combinations_are_held_out_in_the_numbers_asked_for() -> None:
    groups = [name for name in NAMES for _ in range(4)]
    values = ["light", "medium", "dark", "default"] * len(NAMES)
    for rows in range(0, 16, 3):
        held = held_out(28, rows=rows, combinations=5, groups=groups, values=values)
        assert len(held) == rows + 5, "each combination is one row here"
        assert held >= held_out(28, rows=rows, combinations=0)
        pairs = edit_pairs(groups, values, sources=set(range(28)) - held, targets=held)
        assert len({target for _, target in pairs}) >= 5, "a held-out combination can be edited into"
    for wrong in ({"rows": 28, "combinations": 0}, {"rows": -1, "combinations": 0}, {"rows": 0, "combinations": 22}):
        with pytest.raises(ValueError, match=r"data\.holdout"):
            held_out(28, groups=groups, values=values, **wrong)


def test_held_out_rows_are_on_no_side_of_a_training_document(tmp_path: Path, hub_cache: None) -> None:
    config = parquet(tmp_path)
    assert isinstance(config, ParquetData)
    train, test = ParquetPictures(config, split="train", seed=1), ParquetPictures(config, split="test", seed=2)
    assert test.rows == train.test_rows
    assert len(test.rows) == 5
    held = {test.picture(row).numpy().tobytes() for row in test.rows}
    for index in range(400):
        assert not {image.pixels.numpy().tobytes() for image in train.document(index).read().images} & held
        tested = test.document(index).read().images
        for image in tested:
            edited_from = len(tested) == 2 and not image.target
            assert edited_from or image.pixels.numpy().tobytes() in held
    assert all(source in train.rows and target in test.rows for source, target in test.edit_pairs)
    assert all(train.caption(source)[:3] == train.caption(target)[:3] for source, target in train.edit_pairs)
    assert test.edit_pairs
    assert train.edit_pairs


def test_the_real_emoji_make_the_edit_pairs_that_are_known(tmp_path: Path, hub_cache: None) -> None:
    files = emoji(tmp_path).files  # type: ignore[union-attr]
    pictures = ParquetPictures(
        ParquetData(files=files, caption="{name}[, {skin_tone} skin tone]", edit_group="name", edit_column="skin_tone")
    )
    assert (pictures.length, len(pictures.edit_pairs)) == (2980, 8610)
    captions = {pictures.caption(row) for row in pictures.rows}
    assert {"kiwi fruit", "woman mage, default skin tone", "man superhero, medium skin tone"} <= captions


def test_a_mixture_draws_by_weight_and_resumes_every_source(tmp_path: Path, hub_cache: None) -> None:
    source = build_source(mixture(tmp_path), split="train", seed=1)
    kinds = [len(document.images) == 0 for document in usable(source, 700)]
    assert 60 < sum(kinds) < 145  # 0.5 of 3.5 is 100; four standard deviations are 37
    with pytest.raises(ValueError, match="weight above 0"):
        Mixture([source], weights=[0.0], seed=1)


def test_a_weight_of_0_is_never_chosen() -> None:
    assert [choose((0.0, 1.0, 0.0, 3.0, 0.0), number) for number in (0.0, 0.2, 0.25, 0.9999999999999999)] == [
        1,
        1,
        3,
        3,
    ]


def test_class_labels_of_a_stream_are_read_by_name(tmp_path: Path) -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["hot_dog", "cat"])})
    datasets.Dataset.from_dict({"label": [0, 1, 0]}, features=features).to_parquet(tmp_path / "labels.parquet")
    config = StreamData(files=(str(tmp_path / "labels.parquet"),), image_column="", caption="a {label}", holdout=0.0)
    documents = list(usable(build_source(config, split="train", seed=0), 3))
    said = [segment.text for document in documents for segment in document.segments if isinstance(segment, Text)]
    assert sorted(said) == ["a cat", "a hot dog", "a hot dog"]


def words_of(document: Document) -> list[str]:
    return [segment.text for segment in document.segments if isinstance(segment, Text)]


def test_what_one_source_of_a_mixture_holds_out_is_held_out_whatever_the_others_do(tmp_path: Path) -> None:
    """Scenes always hold some out; a text that holds nothing out is shown as it is."""
    words = text(tmp_path)
    scenes = ScenesData(size=32, draw=1, describe=0, edit=0, question=0, story=0)
    held, trained = (Scenes(scenes, split=split, seed=seed_of(0, 0)) for split in ("test", "train"))
    for holdout in (0.2, 0.0):
        mixed = MixtureData(sources=(scenes, replace(words, holdout=holdout)), weights=(1.0, 1.0))
        found = [words_of(document) for document in usable(build_held_out(mixed), 40) if document.images]
        assert found == [words_of(held.document(number)) for number in range(len(found))]
        assert found != [words_of(trained.document(number)) for number in range(len(found))]
