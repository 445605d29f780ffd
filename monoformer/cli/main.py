"""Finds the command, runs it, and turns a user's mistake into one line and exit code 2."""

import sys
from collections.abc import Callable, Sequence

from monoformer.cli.conversion import convert, export
from monoformer.cli.data import data
from monoformer.cli.demonstration import demo
from monoformer.cli.encoding import encode
from monoformer.cli.evaluation import evaluate
from monoformer.cli.generation import caption, chat, edit, generate, write
from monoformer.cli.information import doctor, presets
from monoformer.cli.plan import plan
from monoformer.cli.serving import serve
from monoformer.cli.sweep import sweep
from monoformer.cli.training import save, train
from monoformer.config.spelling import hint

Command = Callable[[list[str]], None]

COMMANDS: dict[str, Command] = {
    "demo": demo,
    "train": train,
    "save": save,
    "plan": plan,
    "data": data,
    "encode": encode,
    "generate": generate,
    "write": write,
    "caption": caption,
    "edit": edit,
    "chat": chat,
    "serve": serve,
    "export": export,
    "convert": convert,
    "evaluate": evaluate,
    "sweep": sweep,
    "presets": presets,
    "doctor": doctor,
}
"""All commands; the first line of each one's docstring is its help."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `monoformer` script."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return
    name, rest = given[0], given[1:]
    try:
        if name == "--version":
            from monoformer import __version__

            print(__version__)
            return
        find(name)(rest)
    except (ValueError, OSError) as error:
        print(f"monoformer: error: {_explained(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nmonoformer: interrupted", file=sys.stderr)
        sys.exit(130)


def _explained(error: ValueError | OSError) -> str:
    """The error in one line; of the system's errors the file first."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def find(name: str) -> Command:
    """The command of that name; a misspelt one is answered with the nearest right one."""
    if name not in COMMANDS:
        raise ValueError(
            f"there is no command {name!r}; {hint(name, COMMANDS, otherwise='commands are ' + ', '.join(COMMANDS))}"
        )
    return COMMANDS[name]


def usage() -> str:
    """The overview that `monoformer --help` prints."""
    lines = [f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "MonoFormer: one transformer that writes text and draws images.",
            "",
            "usage: monoformer COMMAND [options]      (monoformer COMMAND --help explains every option)",
            "",
            *lines,
        ]
    )
