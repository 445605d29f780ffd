"""Finished suites as records, and the JSON file and Markdown table that they make.

Knows nothing of how figures come about. Invariant: every figure stands beside the command, the commit, the seeds, the
settings and the machine that gave it.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from monoformer.evaluate.score import Score
from monoformer.sweep import Record

SHOWN = ("count", "seed", "sampler", "steps", "guidance", "extractor", "stride", "precision")
"""Settings that the table shows; the JSON file holds all."""


def describe_figure(name: str, value: float) -> dict[str, Any]:
    """A figure as JSON data."""
    if not isinstance(value, Score):
        return {"name": name, "value": float(value)}
    found = {"name": name, "value": float(value), "low": value.low, "high": value.high, "count": value.count}
    return {key: part for key, part in found.items() if part is not None and not (key == "count" and not part)}


def write_report(folder: Path, records: Sequence[Record], *, model: str) -> str:
    """Write scores.json and scores.md; the Markdown."""
    document = {"model": model, "suites": list(records)}
    (folder / "scores.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = "\n".join([f"# Scores of {model}", "", *table(records), "", *origins(records)]) + "\n"
    (folder / "scores.md").write_text(text, encoding="utf-8")
    return text


def table(records: Iterable[Record]) -> list[str]:
    """A row a figure: value, 95% interval, number of items."""
    lines = ["| suite | figure | value | 95% interval | items |", "|---|---|---|---|---|"]
    for record in records:
        for figure in record["figures"]:
            low, high = (figure.get(bound) for bound in ("low", "high"))
            interval = "" if low is None or high is None else f"{_number(low)} to {_number(high)}"
            cells = (record["suite"], figure["name"], _number(figure["value"]), interval, figure.get("count", ""))
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def origins(records: Iterable[Record]) -> list[str]:
    """A line a suite: its settings, what it was run with, and how long it took."""
    lines = []
    for record in records:
        settings = {**record["generate"], **record["settings"], "precision": record["precision"]}
        shown = ", ".join(f"{name} {settings[name]}" for name in SHOWN if settings.get(name) not in (None, ""))
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        lines.append(
            f"- {record['suite']} ({record['digest']}): {shown}; `{record['command']}`; commit {record['commit']}; "
            f"{versions}; {record['machine']}; {record['seconds']:.0f} s, finished {record['finished']}"
        )
    return lines


def _number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"
