"""presets, doctor: what there is."""

import inspect
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from monoformer import doctor as inspection
from monoformer.cli.options import parse
from monoformer.presets import PRESETS, autoencoder


@dataclass(frozen=True)
class _Nothing:
    """This command takes no options."""


def presets(arguments: list[str]) -> None:
    """List the presets: commands, machines, run times and results."""
    parse(_Nothing, arguments, command="presets")
    table = Table("preset", "what it is, how to run it, what to expect", show_lines=True)
    for name, build in [*PRESETS.items(), ("autoencoder", autoencoder)]:
        table.add_row(name, inspect.getdoc(build) or "")
    Console().print(table)


def doctor(arguments: list[str]) -> None:
    """Print versions, device, attention backends and extras."""
    parse(_Nothing, arguments, command="doctor")
    table = Table(show_header=False)
    for what, finding in inspection.report():
        table.add_row(what, escape(finding))
    Console().print(table)
