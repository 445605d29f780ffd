"""docs/serve.md and the Dockerfile say what is: the code runs, every limit and figure is there, the command parses."""

import json
import re
import warnings
from dataclasses import fields
from pathlib import Path

import httpx
import pytest

from monoformer.cli.options import parse
from monoformer.cli.serving import _Serve
from monoformer.config.serve import Limits
from monoformer.serve.metrics import COUNTERS, GAUGES
from tests.serve.conftest import Running

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


def test_the_code_runs(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # short code leaves closing to Python
        exec(block.replace("http://127.0.0.1:8000", server.url).replace('"monoformer-mini"', '"tiny"'), {})
    assert "monoformer serve models/monoformer-mini " in PAGE, "by that name the code asks for it"
    assert (tmp_path / "circle.png").is_file()


def test_the_page_of_the_routes_needs_no_network(server: Running) -> None:
    page = httpx.get(f"{server.url}/docs").text
    named = re.findall(r"""(?:src|href|url)[=:]\s*["']([^"']+)""", page)
    assert "/openapi.json" in named
    assert len(named) > 3
    for url in named:
        assert url.startswith("/"), "nothing from elsewhere"
        assert httpx.get(server.url + url).status_code == 200


def test_every_limit_and_figure_is_described() -> None:
    for field in fields(Limits):
        assert f"| `{field.name}` | {field.default} |" in PAGE
    for name in (*GAUGES, *(f"{name}_total" for name in COUNTERS)):
        assert f"`{name}`" in PAGE


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", (0, 0)), ("--ray", (1, 2)), ("--ray --replicas 8", (1, 8)), ("--replicas 4", (4, 4)),
        ("--replicas 2 --most-replicas 8", (2, 8)), ("--ray --replicas 2 --most-replicas 8", (2, 8)),
        ("--ray --most-replicas 3 --gpus 1", (1, 3)),
    ],
)  # fmt: skip
def test_how_many_engines_there_are(given: str, expected: tuple[int, int]) -> None:
    assert parse(_Serve, ["/model", *given.split()], command="serve").span == expected


def test_options_of_engines_that_contradict() -> None:
    for given in (
        "--gpus 1",
        "--most-replicas 2",
        "--replicas 3 --most-replicas 2",
        "--replicas -1",
        "--ray --gpus -1",
    ):
        with pytest.raises(ValueError, match="replicas"):
            _ = parse(_Serve, ["/model", *given.split()], command="serve").span


def test_the_container_runs_a_command_that_there_is() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    start, arguments = (
        json.loads(line.split(" ", 1)[1]) for line in text.splitlines() if line.startswith(("ENTRY", "CMD"))
    )
    assert start == ["monoformer", "serve"]
    options = parse(_Serve, arguments, command="serve")
    assert (options.model, options.server.host, options.server.api_key_file) == (
        "/model",
        "0.0.0.0",
        "/run/secrets/keys",
    )
    for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, flags=re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists(), name
            assert f"!{name}" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
