"""presets, doctor: what there is."""

import inspect

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from monoformer import doctor as inspection
from monoformer.cli.options import parse
from monoformer.presets import PRESETS


def presets(arguments: list[str]) -> None:
    """List the presets: commands, machines, run times and results."""
    parse(type(None), arguments, command="presets") if arguments else None
    table = Table("preset", "what it is, how to run it, what to expect", show_lines=True)
    for name, build in PRESETS.items():
        table.add_row(name, inspect.getdoc(build) or "")
    Console().print(table)


def doctor(arguments: list[str]) -> None:
    """Print versions, device, attention backends and extras."""
    table = Table(show_header=False)
    for what, finding in inspection.report():
        table.add_row(what, escape(finding))
    Console().print(table)
