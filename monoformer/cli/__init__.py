"""The command line: `monoformer COMMAND ...`, one module a group of commands."""

from monoformer.cli.main import main as main
