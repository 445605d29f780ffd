"""Pictures with captions, from folders and from parquet files, as documents that draw, describe or edit them.

A document's pictures are read when they are needed (`Document.read`). Knows nothing of tokens or models. Invariant:
`document(index)` depends on the data, configuration, split and seed alone; a test row is never seen in training, on
either side of an edit. The split does not depend on the seed.
"""

from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from monoformer.config.data import FolderData, ParquetData, check_named
from monoformer.data.captions import (
    METADATA,
    CaptionTemplate,
    check_column,
    folder_captions,
    read_class_names,
    texts,
)
from monoformer.data.edits import edit_pairs, held_out
from monoformer.data.folders import files_in
from monoformer.data.pictures import Content, PictureCache
from monoformer.data.skipped import BadDocument
from monoformer.data.source import Order, Split, choose
from monoformer.document import Document, describe_document, draw_document, edit_document
from monoformer.randomness import uniform

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".ppm", ".gif", ".tif", ".tiff")
TEST_SHARE = 0.05
"""Share of a folder's pictures kept for `split = test`."""
FEWEST_TO_SPLIT = 20
"""A smaller folder is both training and test data."""


class FolderPictures:
    """A folder of pictures, random access. Rows number the pictures by path, those that are only listed come last, and
    so do rows of metadata that name none; `rows` are those of the split. What has a broken caption is tested by nobody.
    """

    def __init__(self, config: FolderData, *, split: Split = "train", seed: int = 0) -> None:
        root = _folder(config)
        names = read_class_names(Path(config.class_names)) if config.class_names else None
        self._captions = folder_captions(root, picture_files(root), class_names=names)
        self.files = list(self._captions)
        self._config = config
        self._prompts = config.prompts or (config.prompt,)
        self._seed = seed
        broken = {row for row, file in enumerate(self.files) if isinstance(self._captions[file], BadDocument)}
        self.train_rows, self.test_rows = _split([_within(path, root) for path in self.files], broken=broken)
        self.rows = self.train_rows if split == "train" else self.test_rows
        self.length = len(self.rows)
        self._order = Order(seed, self.length)
        self._cache = PictureCache(config, lambda row: (self.files[row], str(self.files[row])))

    @property
    def holds_out(self) -> bool:
        """Whether there are enough pictures to keep some from training."""
        return len(self.files) >= FEWEST_TO_SPLIT

    def captions(self, row: int) -> tuple[str, ...]:
        """All captions of a picture, bare; BadDocument where there are none."""
        captions = self._captions[self.files[row]]
        if isinstance(captions, BadDocument):
            raise captions.again()
        if not captions:
            raise BadDocument(f"the picture {self.files[row]} has no caption; give it one", cause="no caption")
        return captions

    def caption(self, row: int) -> str:
        """The first caption of a picture, bare."""
        return self.captions(row)[0]

    def prompt(self, row: int) -> str:
        """What a user writes to get the picture: the first caption in the first template."""
        return self._prompts[0].replace("{}", self.caption(row))

    def picture(self, row: int) -> Tensor:
        """uint8 (3, height, width), shared: not to be written into. BadDocument where the file is broken or missing."""
        return self._cache.picture(row)

    def document(self, index: int) -> Document:
        """Document number `index` of the endless shuffled stream."""
        row = self.rows[self._order.item(index)]
        caption = one_of(self.captions(row), uniform(self._seed, index, "caption"))
        mirrored = self._config.flip and uniform(self._seed, index, "flip") < 0.5
        picture = self._cache.later(row, mirrored=mirrored)
        if choose((self._config.draw, self._config.describe), uniform(self._seed, index, "kind")) == 0:
            prompt = one_of(self._prompts, uniform(self._seed, index, "prompt"))
            return draw_document(prompt.replace("{}", caption), picture)
        return describe_document(picture, caption)


class ParquetPictures:
    """Parquet files with a column of pictures, random access. Rows number those of the files; `rows` are the split's.

    A test edit starts from a training row and its target is a test row. Hugging Face's `datasets` keeps an
    uncompressed, memory-mapped copy of the files in its cache folder (HF_HOME).
    """

    def __init__(self, config: ParquetData, *, split: Split = "train", seed: int = 0) -> None:
        self._config = config
        self._seed = seed
        self._template = CaptionTemplate(config.caption)
        table = read_table(config, text_columns=self._template.columns)
        self._pictures = table.select_columns([config.image_column])
        self._values = {column: _cells(table, column) for column in self._template.columns}
        groups, self._edit_values = _first(table, config.edit_group), _first(table, config.edit_column)
        held = held_out(
            len(table), rows=config.holdout, combinations=config.holdout_pairs, groups=groups, values=self._edit_values
        )
        self.train_rows = tuple(row for row in range(len(table)) if row not in held)
        self.test_rows = tuple(sorted(held))
        self.rows = self.train_rows if split == "train" else self.test_rows
        if not self.rows:
            raise ValueError("split 'test' is empty; set data.holdout or data.holdout_pairs, or read a test file")
        self.length = len(self.rows)
        self._order = Order(seed, self.length)
        self.edit_pairs: list[tuple[int, int]] = []
        if groups and self._edit_values:
            self.edit_pairs = edit_pairs(groups, self._edit_values, sources=self.train_rows, targets=self.rows)
        self._weights = self._kinds(split)
        self._pair_order = Order(seed, max(len(self.edit_pairs), 1))
        self._cache = PictureCache(config, self._find)

    def _kinds(self, split: Split) -> tuple[float, float, float]:
        """Weights of draw, describe and edit; a test split without pairs has no edits."""
        config = self._config
        if config.edit > 0 and not self.edit_pairs and (split == "train" or config.draw + config.describe == 0):
            raise ValueError(
                f"data.edit is {config.edit}, but no rows share data.edit_group {config.edit_group!r} and differ in "
                f"data.edit_column {config.edit_column!r} in split {split!r}; name other columns or set data.edit to 0"
            )
        return config.draw, config.describe, config.edit if self.edit_pairs else 0.0

    def captions(self, row: int) -> tuple[str, ...]:
        """All captions of a row: several where a column holds a list; BadDocument where all are empty."""
        captions = self._template.fill({column: cells[row] for column, cells in self._values.items()})
        if not any(captions):
            say = f"row {row} of {', '.join(self._config.files)} has no caption in {self._config.caption!r}"
            raise BadDocument(say, cause="no caption")
        return tuple(caption for caption in captions if caption)

    def caption(self, row: int) -> str:
        """The first caption of a row."""
        return self.captions(row)[0]

    def prompt(self, row: int) -> str:
        """What a user writes to get the picture: its first caption."""
        return self.caption(row)

    def instruction(self, target: int) -> str:
        """What a user writes to have a picture of the same group changed into this row's."""
        return self._config.instruction.replace("{}", self._edit_values[target])

    def picture(self, row: int) -> Tensor:
        """uint8 (3, height, width), shared: not to be written into. BadDocument where there is none."""
        return self._cache.picture(row)

    def document(self, index: int) -> Document:
        """Document number `index` of the endless shuffled stream."""
        kind = choose(self._weights, uniform(self._seed, index, "kind"))
        if kind == 2:
            source, target = self.edit_pairs[self._pair_order.item(index)]
            return edit_document(self._cache.later(source), self.instruction(target), self._cache.later(target))
        row = self.rows[self._order.item(index)]
        caption = one_of(self.captions(row), uniform(self._seed, index, "caption"))
        if kind == 0:
            return draw_document(caption, self._cache.later(row))
        return describe_document(self._cache.later(row), caption)

    def _find(self, row: int) -> tuple[Content, str]:
        name = f"in row {row} of {', '.join(self._config.files)}"
        cell: Any = self._pictures[row][self._config.image_column]
        content = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
        if not isinstance(content, bytes | str) or not content:
            say = f"the picture {name} is missing; data.image_column holds {cell!r:.80} there"
            raise BadDocument(say, cause="no picture")
        return Path(content) if isinstance(content, str) else content, name


def read_table(config: ParquetData, *, text_columns: Sequence[str]) -> "datasets.Dataset":
    """The parquet files as one table with undecoded pictures; ValueError for missing files and columns."""
    import datasets

    check_named(config)
    for path in config.files:
        if "://" not in path and not Path(path).is_file():
            raise ValueError(f"data.files names {path!r}, but there is no such file; check the path")
    try:
        table = datasets.load_dataset("parquet", data_files=list(config.files), split="train")
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"data.files {', '.join(config.files)} cannot be read as parquet ({reason})") from error
    assert isinstance(table, datasets.Dataset)
    wanted = [("data.image_column", config.image_column)] + [("data.caption", column) for column in text_columns]
    wanted += [("data.edit_group", config.edit_group), ("data.edit_column", config.edit_column)]
    for setting, column in wanted:
        if column:
            check_column(column, columns=table.column_names, setting=setting)
    if len(table) == 0:
        raise ValueError(f"data.files {', '.join(config.files)} hold no rows; give files with pictures")
    if isinstance(table.features[config.image_column], datasets.Image):
        table = table.cast_column(config.image_column, datasets.Image(decode=False))
    return table


def _cells(table: "datasets.Dataset", column: str) -> list[tuple[str, ...]]:
    """The strings of every row of a column; class labels by name."""
    values = table.select_columns([column])[:][column]
    names = class_names(table.features[column])
    return [texts(class_name(names, value) if names else value) for value in values]


def class_names(feature: object) -> list[str]:
    """The names of a column of class labels, underscores as spaces; none for another column of a table."""
    import datasets

    return [name.replace("_", " ") for name in feature.names] if isinstance(feature, datasets.ClassLabel) else []


def class_name(names: list[str], label: int | None) -> str | None:
    """The name of a label; None for a row without one (or -1, by convention)."""
    return names[label] if label is not None and label >= 0 else None


def _first(table: "datasets.Dataset", column: str) -> list[str]:
    """The first string of every row of a column, '' where empty; no strings at all without a column."""
    return [cell[0] if cell else "" for cell in _cells(table, column)] if column else []


def one_of(captions: Sequence[str], number: float) -> str:
    """The caption that a number in [0, 1) falls on."""
    return captions[int(number * len(captions))]


def _folder(config: FolderData) -> Path:
    check_named(config)
    if not Path(config.root).is_dir():
        raise ValueError(f"data.root is {config.root!r}, which is not a folder; check the path")
    return Path(config.root)


def picture_files(root: Path) -> list[Path]:
    """All pictures in a folder and in those inside it, by path; ValueError where there are none."""
    try:
        next(root.iterdir(), None)
        found = sorted(files_in(root), key=lambda path: path.relative_to(root).as_posix())
        hidden = {path for path in found if any(part[0] == "." for part in path.relative_to(root).parts)}
        files = [path for path in found if path.suffix.lower() in SUFFIXES and path not in hidden]
    except OSError as error:
        raise ValueError(f"data.root {str(root)!r} cannot be read ({error.strerror}); check its permissions") from error
    if not files:
        raise ValueError(f"data.root {str(root)!r} holds no pictures ({', '.join(SUFFIXES)}); give a folder with some")
    return files


def no_pictures(root: Path) -> Counter[str]:
    """How many files of a folder of pictures are taken for none, nor for captions, by the ends of their names."""
    files = [path for path in files_in(root) if path.name[0] != "." and path.name not in METADATA]
    own = {path.with_suffix("") for path in files if path.suffix.lower() in SUFFIXES}
    captions = {path for path in files if path.suffix == ".txt" and path.with_suffix("") in own}
    return Counter(
        path.suffix or path.name for path in files if path.suffix.lower() not in SUFFIXES and path not in captions
    )


def _within(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _split(names: Sequence[str], *, broken: Container[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Training and test rows by name alone, so that adding pictures moves none from one split to the other; broken ones
    are in training, where they are counted.
    """
    everything = tuple(range(len(names)))
    whole = [row for row in everything if row not in broken]
    if len(names) < FEWEST_TO_SPLIT:
        return everything, tuple(whole)
    numbers = [uniform("split", name) for name in names]
    bound = max(TEST_SHARE, min(numbers[row] for row in whole))
    test = tuple(row for row in whole if numbers[row] <= bound)
    return tuple(row for row in everything if row in broken or numbers[row] > bound), test
