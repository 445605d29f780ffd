"""data check: what a run would read, before it is trained."""

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from monoformer.cli.options import take, whole_number
from monoformer.cli.training import read_config
from monoformer.config.data import check_named
from monoformer.config.run import check_start
from monoformer.document import Document, Image
from monoformer.gallery import Cell, Section, draw_gallery
from monoformer.train.survey import Packing, Survey, check_data

SHOWN = 12
"""Pictures of each source on the contact sheet."""
WORDS = 160
"""Most characters under a picture."""
USAGE = """usage: monoformer data check PRESET [--documents 200] [--out data-check.png] [options of train ...]
       monoformer data check --config FILE ..."""


def data(arguments: list[str]) -> None:
    """Check the data of a run: monoformer data check PRESET [--documents 200] [--out FILE.png] [options of train]"""
    if not arguments or {"-h", "--help"} & set(arguments[:2]):
        print(f"{USAGE}\n\nReads documents of every source and reports counts, lengths, pictures, errors and padding.")
        sys.exit()
    if arguments[0] != "check":
        raise ValueError(f"data has the one command check, but {arguments[0]!r} was given; write monoformer data check")
    rest, given = take(arguments[1:], documents="200", out="data-check.png")
    count = whole_number("documents", given["documents"], least=1)
    config, out = read_config(rest), Path(given["out"])
    check_start(config)
    check_named(config.data)
    surveys, now, best = check_data(config, count=count)
    console = Console()
    for one in surveys:
        console.print(_table(one))
    console.print(_say(now, best), markup=False, soft_wrap=True)
    sections = [section for one in surveys if (section := _sheet(one)).cells]
    if sections:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_gallery(sections).save(out)
        console.print(f"contact sheet: {out}", markup=False, soft_wrap=True)
    for one in surveys:
        one.tally.check(config.train.skip_limit)


def _table(survey: Survey) -> Table:
    table = Table(title=survey.name, title_justify="left", show_header=False, title_style="bold", min_width=60)
    for name, value in survey.figures():
        table.add_row(name, escape(value))
    return table


def _say(now: Packing, best: Packing) -> str:
    said = f"{now.rows} rows of {now.row} tokens a step: {now.padding:.1%} padding"
    if best.row == now.row:
        return said
    options = f"--sequence.row {best.row} --train.rows {best.rows}"
    return f"{said}; {best.rows} rows of {best.row} would have {best.padding:.1%} ({options})"


def _sheet(survey: Survey) -> Section:
    pairs = [(image, document) for document in survey.documents for image in document.images if image.has_pixels]
    return Section(survey.name, tuple(Cell((image.to_pil(),), _words(document)) for image, document in pairs[:SHOWN]))


def _words(document: Document) -> str:
    """A document's text with its roles' first letters, and where its pictures are."""
    said = []
    for part in document.segments:
        who = f"{part.role[0].upper()}: " if part.role else ""
        said.append(who + (("[draw]" if part.target else "[read]") if isinstance(part, Image) else part.text))
    words = " ".join(said)
    return words if len(words) <= WORDS else f"{words[:WORDS]}..."
