"""Keeps docs/status.md honest: run the proof of every row, and write where and when it passed.

python -m tests.status            all rows
python -m tests.status muon mask  rows whose proof names one of these words
"""

import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from monoformer.sweep import commit
from tests.pages import ROOT, read

PAGE = "docs/status.md"
ROW = re.compile(
    r"^\| (?P<feature>[^|]+) \| `(?P<proof>tests/[^`]+)` \| (?P<cpu>[^|]+) \| (?P<cuda>[^|]+) \| (?P<mps>[^|]+) \|$"
)


@dataclass(eq=False)
class Outcomes:
    """What became of every test file: a pytest plugin."""

    passed: set[str]
    spoiled: set[str]
    """Files with a failed or skipped test."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.split("::")[0]
        if not report.passed:
            self.spoiled.add(file)
        elif report.when == "call":
            self.passed.add(file)


def rows() -> list[dict[str, str]]:
    """The feature rows of the page."""
    return [match.groupdict() for line in read(PAGE).splitlines() if (match := ROW.match(line))]


def main(words: list[str]) -> None:
    """Run the proofs, then rewrite the CPU column of those that passed without a skip."""
    here = commit().removesuffix("-dirty")
    proofs = [row["proof"] for row in rows() if not words or any(word in row["proof"] for word in words)]
    outcomes = Outcomes(set(), set())
    pytest.main(["-p", "no:xdist", "-m", "not slow", *dict.fromkeys(proofs)], plugins=[outcomes])
    found = f"{datetime.now(UTC):%Y-%m-%d} {here[:7]}"
    proven = outcomes.passed - outcomes.spoiled
    lines = []
    for line in read(PAGE).splitlines():
        match = ROW.match(line)
        if match and match["proof"].split("::")[0] in proven and match["proof"] in proofs:
            line = f"| {match['feature']} | `{match['proof']}` | {found} | {match['cuda']} | {match['mps']} |"
        lines.append(line)
    (ROOT / PAGE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(
        f"{len(proven)} of {len(set(proofs))} proofs passed at {found}; kept as they were: {sorted(outcomes.spoiled)}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
