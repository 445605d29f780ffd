"""What every source of documents promises: the same stream again, exact resume, no end, and a test split of its own."""

import json
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
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
from monoformer.data.build import build_source
from monoformer.data.edits import edit_pairs, held_out
from monoformer.data.images import ParquetPictures
from monoformer.data.skipped import BadDocument
from monoformer.data.source import Mixture, Source, choose, order, usable
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
    documents = [one for one in read if isinstance(one, Document)]
    said = [segment.text for document in documents for segment in document.segments if isinstance(segment, Text)]
    assert sorted(said) == ["a cat", "a hot dog", "a hot dog"]
