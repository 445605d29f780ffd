"""Hugging Face data sets read as streams: from the hub, webdataset tars, parquet, JSON lines.

Shards come in a seeded order, and blocks of rows within a shard are shuffled, both by us: a shuffled stream of
`datasets` loses what its buffer held when it is resumed. Knows nothing of tokens. Invariant: the order is a function of
seed, epoch, shard and block alone.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monoformer.config.sources import StreamData
from monoformer.data.ahead import in_order
from monoformer.data.captions import CaptionTemplate, check_column, texts
from monoformer.data.chat import check_form, find_named, read_chat
from monoformer.data.images import class_name, class_names, one_of
from monoformer.data.pictures import mirror
from monoformer.data.shards import parse_line, parse_members, read_tars
from monoformer.data.skipped import BadDocument, unreadable
from monoformer.data.source import Split, choose, order
from monoformer.document import Document, Text, describe_document, draw_document
from monoformer.randomness import uniform

if TYPE_CHECKING:
    import datasets

BUILDERS = {".tar": "", ".parquet": "parquet", ".jsonl": "text", ".json": "json"}
"""Which builder of `datasets` reads files of which kind. JSON lines are read as text and tars by us: the builders for
them end at the first broken line or member."""
PARSERS = {".tar": parse_members, ".jsonl": parse_line}
"""What makes a row of what is read of files of that kind."""
START = {"epoch": 0, "shard": 0, "rows": 0, "stream": None, "place": 0}
"""The position of a stream that was not read."""


class Stream:
    """An endless stream of the rows of one data set, with a position: a block of rows and the place in it."""

    def __init__(
        self,
        config: StreamData,
        *,
        split: Split = "train",
        seed: int = 0,
        name: str = "stream",
        readers: int = 1,
        later: bool = False,
    ) -> None:
        """`later`: whether pictures are left to be read when they are needed."""
        self._config, self._split, self._seed, self._name, self._readers = config, split, seed, name, readers
        self._later = later
        self._template = CaptionTemplate(config.caption)
        self._data = open_stream(config)
        self._shards = max(self._data.num_shards, 1)
        features = self._data.features or {}
        kind = Path(config.files[0]).suffix if config.files else ""
        if features and kind not in PARSERS:
            _check_columns(config, self._template.columns, features)
        self._parse: Callable[..., Mapping[str, Any]] = PARSERS.get(kind, lambda row, name: row)
        self._classes = {column: names for column, feature in features.items() if (names := class_names(feature))}
        self._state: dict[str, Any] = dict(START)

    def __iter__(self) -> Iterator[Document | BadDocument]:
        empty = 0  # epochs; the first may be the rest of one that was read to its end
        while empty < 2:
            found = 0
            for document in self._epoch():
                found += 1
                yield document
            empty = 0 if found else empty + 1
            self._state = {**START, "epoch": self._state["epoch"] + 1}
        raise ValueError(
            f"the stream {self._name} has no row for split {self._split!r}; change data.holdout or data.part"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The name it was given."""
        return (self._name,)

    def origin(self, number: int) -> str:
        """The name it was given."""
        return self._name

    def state_dict(self) -> dict[str, Any]:
        """Epoch, shard, the rows of it before the block, where `datasets` finds them, and the place in the block."""
        return copy.deepcopy(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` gave; ValueError for anything else."""
        if state.keys() != START.keys():
            raise ValueError(
                f"the saved position of a stream must hold {', '.join(START)}, but is {state}; "
                f"resume with the configuration that was saved with it"
            )
        self._state = copy.deepcopy(state)

    def _epoch(self) -> Iterator[Document | BadDocument]:
        """The rest of the epoch from the position on, which moves along."""
        shards = order(self._seed, self._state["epoch"], self._shards)
        while self._state["shard"] < self._shards:
            yield from self._shard(int(shards[self._state["shard"]]))
            self._state = {**START, "epoch": self._state["epoch"], "shard": self._state["shard"] + 1}

    def _shard(self, shard: int) -> Iterator[Document | BadDocument]:
        """The rest of a shard, block by block; what breaks its reading is a bad document, and its end."""
        data = self._data.shard(num_shards=self._shards, index=shard)  # a new object, which has a position of its own
        if self._state["stream"] is not None:
            data.load_state_dict(copy.deepcopy(self._state["stream"]))
        rows = iter(data)
        while True:
            block, broken = _read(rows, self._config.block)
            if not block and broken is None:
                return
            after = copy.deepcopy(data.state_dict())
            yield from self._block(block, shard, broken)
            if broken is not None:
                return
            self._state |= {"rows": self._state["rows"] + len(block), "stream": after, "place": 0}

    def _block(
        self, block: list[dict[str, Any]], shard: int, broken: Exception | None
    ) -> Iterator[Document | BadDocument]:
        """The documents of a block from the place on, those of this split alone; last, what broke the shard."""
        epoch, first = self._state["epoch"], self._state["rows"]
        wanted = [at for at, row in enumerate(block) if self._wanted(shard, first + at) and not self._is_blank(row)]
        shuffled: list[int | None] = [wanted[at] for at in _shuffled(len(wanted), self._seed, epoch, shard, first)]

        def read(at: int | None) -> Document | BadDocument:
            try:
                if at is None:
                    say = f"shard {shard} of {self._name} cannot be read on after row {first + len(block)} ({broken})"
                    raise BadDocument(say, cause="broken shard")
                document = self._document(block[at], (self._seed, epoch, shard, first + at))
                return document if self._later else document.read()
            except BadDocument as bad:
                return bad
            except Exception as error:
                return unreadable(error, name=f"row {first + (at or 0)} of shard {shard} of {self._name}")

        left = [*shuffled, *([None] if broken else [])][self._state["place"] :]
        for document in in_order(read, left, readers=self._readers):
            self._state["place"] += 1
            yield document

    def _wanted(self, shard: int, row: int) -> bool:
        held = uniform("split", shard, row) < self._config.holdout
        return held == (self._split == "test")

    def _is_blank(self, row: Mapping[str, Any]) -> bool:
        """Whether it is an empty line, which is nothing, among those of JSON."""
        return self._parse is parse_line and not row["text"].strip()

    def _document(self, row: Mapping[str, Any], key: tuple[int, ...]) -> Document:
        config, name = self._config, f"row {key[3]} of shard {key[2]} of {self._name}"
        row = self._parse(row, name=name)
        folder = Path(config.files[0]).parent if config.files else Path()
        if config.chat:
            return read_chat(row, config, name=name, folder=folder)
        _check_keys(config, self._template.needed, row, name=name)
        row = {**row, **{column: class_name(names, row.get(column)) for column, names in self._classes.items()}}
        found = {column: texts(_field(row, column)) for column in self._template.columns}
        captions = [caption for caption in self._template.fill(found) if caption]
        if not captions:
            raise BadDocument(f"{name} has no caption in {config.caption!r}", cause="no caption")
        caption = one_of(captions, uniform(*key, "caption"))
        if not config.image_column:
            return Document((Text(caption),))
        picture = find_named(config, _first(row, config.image_column.split(";")), name=name, folder=folder)
        if config.flip and uniform(*key, "flip") < 0.5:
            picture = mirror(picture)
        if choose((config.draw, config.describe), uniform(*key, "kind")) == 0:
            prompt = one_of(config.prompts or (config.prompt,), uniform(*key, "prompt"))
            return draw_document(prompt.replace("{}", caption), picture)
        return describe_document(picture, caption)


def open_stream(config: StreamData) -> "datasets.IterableDataset":
    """The data set, nothing of it read yet and its pictures undecoded; ValueError where it cannot be opened."""
    import datasets

    for path in config.files:
        if "://" not in path and not Path(path).is_file():
            raise ValueError(f"data.files names {path!r}, but there is no such file; check the path")
    kinds = {BUILDERS.get(Path(path).suffix) for path in config.files}
    if config.files and (len(kinds) > 1 or None in kinds):
        raise ValueError(f"data.files must all be .tar, all .parquet or all .jsonl, but are {', '.join(config.files)}")
    files = list(config.files) or None
    part, kind = "train" if files else config.part, kinds.pop() if files else ""
    try:
        if kind == "" and files:
            return datasets.IterableDataset.from_generator(read_tars, gen_kwargs={"paths": files})
        data = datasets.load_dataset(
            kind or config.path,
            config.configuration or None,
            data_files=files,
            split=part,
            streaming=True,
            **({"encoding_errors": "replace"} if kind == "text" else {}),
        )
    except Exception as error:  # the hub, its network and its builders raise whatever they meet
        wanted = ", ".join(config.files) or config.path
        raise ValueError(f"the data set {wanted} cannot be opened ({' '.join(str(error).split())})") from error
    for column, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return data


def _check_columns(config: StreamData, columns: Sequence[str], features: Mapping[str, Any]) -> None:
    """ValueError where a setting names a column that the data does not have."""
    if config.chat:
        check_form(features)
        return
    for column in columns:
        outer, _, inner = column.partition(".")
        found = None if column in features else features.get(outer)
        if isinstance(found, Mapping):
            check_column(inner, columns=list(found), setting=f"data.caption: {{{column}}}")
        elif column not in features:
            check_column(column, columns=list(features), setting="data.caption")
    pictures = config.image_column.split(";")
    if config.image_column and not any(column in features for column in pictures):
        check_column(pictures[0], columns=list(features), setting="data.image_column")


def _check_keys(config: StreamData, columns: Sequence[str], row: Mapping[str, Any], *, name: str) -> None:
    """BadDocument where a row lacks a column that it needs; an empty one is there."""
    keys = [*row, *(f"{key}.{inner}" for key, found in row.items() if isinstance(found, Mapping) for inner in found)]
    empty = [key for key, found in row.items() if found is None]
    pictures = config.image_column.split(";")
    try:
        for column in columns:
            if column.partition(".")[0] not in empty:
                check_column(column, columns=keys, setting="data.caption")
        if config.image_column and not any(column in row for column in pictures):
            check_column(pictures[0], columns=keys, setting="data.image_column")
    except ValueError as error:
        raise BadDocument(f"{name}: {error}", cause="no such column") from error


def _read(rows: Iterator[dict[str, Any]], count: int) -> tuple[list[dict[str, Any]], Exception | None]:
    """The next rows, fewer at the end; and what broke the reading, if anything did."""
    block: list[dict[str, Any]] = []
    try:
        for row in islice(rows, count):
            block.append(row)
    except Exception as error:  # a cut tar, a lost connection, a damaged page: each reader has its own
        return block, error
    return block, None


def _shuffled(length: int, seed: int, epoch: int, shard: int, first: int) -> list[int]:
    if not length:
        return []
    return [int(at) for at in order(int(uniform(seed, epoch, shard, first, "block") * 2**31), 0, length)]


def _first(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    """What the first of the columns that the row has holds."""
    return next((row[column] for column in columns if row.get(column)), None)


def _field(row: Mapping[str, Any], column: str) -> Any:
    """A column, or `json.key` in a column that holds an object; text of bytes is UTF-8."""
    if column in row or "." not in column:
        value = row.get(column)
    else:
        outer, _, inner = column.partition(".")
        found = row.get(outer)
        value = found.get(inner) if isinstance(found, Mapping) else None
    return value.decode(errors="replace") if isinstance(value, bytes) else value
