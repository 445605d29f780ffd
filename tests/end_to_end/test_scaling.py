"""docs/scaling.md says what its commands print."""

import re
import shlex
from pathlib import Path

import pytest

from monoformer.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
BLOCKS = re.findall(r"```bash\n(.*?)\n```\n\n```text\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_page_has_its_commands() -> None:
    assert len(BLOCKS) == 3
    assert all(command.startswith("monoformer plan transfusion-7b --gpus") for command, _ in BLOCKS)


@pytest.mark.slow  # ten seconds and more for the advice to a run that does not fit
@pytest.mark.parametrize(("command", "printed"), BLOCKS)
def test_the_commands_print_what_the_page_says(
    command: str, printed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    main(shlex.split(command)[1:])
    said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert said == printed.splitlines()
