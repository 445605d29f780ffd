"""Keeps docs/status.md honest: run the proof of every row, and write where and when it passed.

python -m tests.status            rows whose proof has no slow tests
python -m tests.status muon mask  of these, rows whose proof names one of these words
python -m tests.status --slow     rows whose proof has slow tests, all tests of them
"""

import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from monoformer.sweep import commit
from tests.pages import ROOT, read

PAGE = "docs/status.md"
ROW = re.compile(r"^\| (?P<feature>[^|]+) \| `(?P<proof>tests/[^`]+)` \| (?P<here>[^|]+) \| (?P<others>.+) \|$")
"""The first place is where the tests run: a CPU, or several processes of one with gloo."""


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
    """Run the proofs, then rewrite the first place of those that passed without a skip."""
    here, slow = commit().removesuffix("-dirty"), "--slow" in words
    words = [word for word in words if word != "--slow"]
    proofs = [row["proof"] for row in rows() if not words or any(word in row["proof"] for word in words)]
    proofs = [proof for proof in proofs if ("mark.slow" in read(proof)) == slow]  # a part of a proof is none
    outcomes = Outcomes(set(), set())
    pytest.main(["-p", "no:xdist", *([] if slow else ["-m", "not slow"]), *dict.fromkeys(proofs)], plugins=[outcomes])
    found = f"{datetime.now(UTC):%Y-%m-%d} {here[:7]}"
    proven = outcomes.passed - outcomes.spoiled
    lines = []
    for line in read(PAGE).splitlines():
        match = ROW.match(line)
        if match and match["proof"] in proven & {*proofs}:
            line = f"| {match['feature']} | `{match['proof']}` | {found} | {match['others']} |"
        lines.append(line)
    (ROOT / PAGE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(
        f"{len(proven)} of {len(set(proofs))} proofs passed at {found}; kept as they were: {sorted(outcomes.spoiled)}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
