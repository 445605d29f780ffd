"""Multiple-choice tasks from local files, asked and counted as lm_eval does.

Knows files, prompts and the tokenizer, nothing of how text is read by the network. The seven tasks are those of
MonoFormer's table 2. Invariant: prompts, and where a token belongs to context or answer, are lm_eval's.
"""

import bz2
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from monoformer.config.spelling import hint
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.likelihood import ROWS, continuation, read_layouts
from monoformer.evaluate.score import Score, share
from monoformer.pretrained import Pretrained
from monoformer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Item:
    """One question."""

    contexts: tuple[str, ...]
    """What is read before each choice: the same for all, but in WinoGrande."""
    choices: tuple[str, ...]
    """The choices as lm_eval counts their characters; a blank goes before each."""
    gold: int
    """The right choice, counted from 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.gold < len(self.choices):
            raise ValueError(f"the right one of {len(self.choices)} choices is counted from 0, but is {self.gold}")


@dataclass(frozen=True)
class TaskForm:
    """Where a task's items are, and which of its two accuracies is reported."""

    files: tuple[str, ...]
    """Names that its file may have."""
    normalized: bool
    """Whether tables of results give the accuracy by likelihood a character."""


TASKS = {
    "hellaswag": TaskForm(("hellaswag_val_full.txt", "hellaswag_val_full.txt.bz2"), normalized=True),
    "openbookqa": TaskForm(("openbook_qa.jsonl",), normalized=True),
    "winogrande": TaskForm(("winogrande.jsonl",), normalized=False),
    "arc_challenge": TaskForm(("arc_challenge.jsonl",), normalized=True),
    "arc_easy": TaskForm(("arc_easy.jsonl",), normalized=True),
    "boolq": TaskForm(("boolq.jsonl",), normalized=False),
    "piqa": TaskForm(("piqa.jsonl",), normalized=True),
}
"""MonoFormer's seven, in the order of its table."""


@dataclass(frozen=True, kw_only=True)
class TaskEvaluator:
    """Accuracy by likelihood, and by likelihood a character, of each task; the mean of what tables report."""

    pretrained: Pretrained
    items: dict[str, list[Item]]
    """By task."""
    rows: int = ROWS
    """Packed rows in one pass."""
    chunk: int = 32
    """Items between two entries of the journal."""
    vocabulary: int = 0
    """Rows of the vocabulary that can follow; 0: all."""
    journal: Journal = field(default_factory=Journal)

    @property
    def total(self) -> int:
        """Items of all tasks."""
        return sum(len(items) for items in self.items.values())

    def run(self) -> Iterator[tuple[str, float]]:
        """NAME_accuracy, and NAME_accuracy_normalized where the choices differ in length."""
        reported: list[Score] = []
        for name, items in self.items.items():
            right: list[list[bool]] = []
            for first in range(0, len(items), self.chunk):
                chosen = items[first : first + self.chunk]
                right += self.journal.remember(name, first, count=len(chosen), compute=partial(self._ask, chosen))
            plain, normalized = (share(sum(found), len(items)) for found in zip(*right, strict=True))
            yield f"{name}_accuracy", plain
            if TASKS[name].normalized:
                yield f"{name}_accuracy_normalized", normalized
            reported.append(normalized if TASKS[name].normalized else plain)
        if len(reported) == len(TASKS):
            yield "seven_tasks_mean", sum(reported) / len(reported)

    def _ask(self, chosen: Sequence[Item]) -> list[tuple[bool, bool]]:
        """Whether each item is answered right, by likelihood and by likelihood a character."""
        tokenizer, length = self.pretrained.tokenizer, self.pretrained.model.config.context
        layouts = [
            continuation(*encode_pair(tokenizer, context, " " + choice), length=length)
            for item in chosen
            for context, choice in zip(item.contexts, item.choices, strict=True)
        ]
        readings = iter(read_layouts(self.pretrained, layouts, rows=self.rows, vocabulary=self.vocabulary))
        found = []
        for item in chosen:
            likelihoods = np.array([-next(readings).nats for _ in item.choices])
            lengths = np.array([len(choice) for choice in item.choices])
            found.append((bool(likelihoods.argmax() == item.gold), bool((likelihoods / lengths).argmax() == item.gold)))
        return found


def encode_pair(tokenizer: Tokenizer, context: str, following: str, *, bos: bool = True) -> tuple[list[int], list[int]]:
    """Ids of a context, bos first, and of what follows it: split where the ids of the context alone end.

    Blanks at the context's end go to what follows. An empty context is bos, with `bos` or without.
    """
    kept = context.rstrip()
    following = context[len(kept) :] + following
    before = tokenizer.encode(kept)
    start = [tokenizer.bos] if bos or not context else []
    return [*start, *before], tokenizer.encode(kept + following)[len(before) :]


def read_tasks(folder: str, names: Sequence[str], *, count: int = 0) -> dict[str, list[Item]]:
    """Items of the named tasks, or of all that the folder holds; the first `count` of each, 0: all.

    Raises ValueError for a task that is not known or not there.
    """
    for name in names:
        if name not in TASKS:
            raise ValueError(
                f"there is no task {name!r}; {hint(name, TASKS, otherwise='tasks are ' + ', '.join(TASKS))}"
            )
    here = {name: path for name in TASKS if (path := _find(Path(folder), name))}
    missing = [name for name in names if name not in here]
    if missing or not here:
        wanted = ", ".join(TASKS[name].files[-1] for name in missing or TASKS)
        raise ValueError(f"the folder {folder!r} does not hold {wanted}")
    chosen = [name for name in TASKS if name in (names or here)]
    return {name: read_items(name, here[name])[: count or None] for name in chosen}


def _find(folder: Path, name: str) -> Path | None:
    return next((path for file in TASKS[name].files if (path := folder / file).is_file()), None)


def read_items(name: str, path: Path) -> list[Item]:
    """The items in a task's file; ValueError, naming the line, for one of another form."""
    items = list(read_hellaswag(path)) if name == "hellaswag" else list(_read_lines(name, path))
    if not items:
        raise ValueError(f"{path} holds no item of {name}")
    return items


def _read_lines(name: str, path: Path) -> Iterator[Item]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield read_item(name, json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} line {number} is no item of {name}: {type(error).__name__} {error}") from None


def read_item(name: str, data: dict[str, Any]) -> Item:
    """An item of a JSON line, with lm_eval's prompt."""
    gold = int(data["gold"])
    if name == "winogrande":  # the same words after either beginning
        contexts = tuple(data["context_options"])
        return Item(contexts, (data["continuation"],) * len(contexts), gold)
    query, choices = str(data["query"]), tuple(data["choices"])
    match name:
        case "boolq":
            context = query.removeprefix("Passage: ") + "\nAnswer:"
        case "openbookqa":
            context = query
        case _:
            context = query.rstrip("\n") + "\nAnswer:"
    return Item((context,) * len(choices), choices, gold)


def read_hellaswag(path: Path) -> Iterator[Item]:
    """Six lines an item: activity and context, number of the right ending, four endings."""
    try:
        content = bz2.decompress(path.read_bytes()) if path.suffix == ".bz2" else path.read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; fetch it anew") from None
    lines = content.decode("utf-8").removesuffix("\n").split("\n")
    if len(lines) % 6:
        raise ValueError(f"{path} has {len(lines)} lines, but six make an item of hellaswag")
    for first in range(0, len(lines), 6):
        context, gold, *endings = lines[first : first + 6]
        if gold not in ("0", "1", "2", "3"):
            raise ValueError(f"{path} line {first + 2} is to name one of four endings, 0 to 3, but is {gold!r:.20}")
        prompt = tidy(capitalize_last(context))
        yield Item((prompt,) * 4, tuple(tidy(ending) for ending in endings), int(gold))


def capitalize_last(context: str) -> str:
    """The last, unfinished sentence with a capital, as lm_eval's prompts have it; it starts small in the data."""
    before, dot, last = context.rpartition(". ")
    return f"{before}{dot}{last.capitalize()}" if last[:1].islower() else context


def tidy(text: str) -> str:
    """Without the marks that HellaSwag's wikiHow part has."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
