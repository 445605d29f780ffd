"""The documentation site needs nothing but its own files."""

import re
from pathlib import Path

import pytest

from tests.pages import ROOT

LOADS = (
    r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)\""
    r"|<link[^>]*\srel=\"(?!canonical|prev|next)[^>]*href=\"([^\"]+)\""
)
"""What a browser fetches without being asked: scripts, pictures, styles, icons, fonts."""


@pytest.mark.slow
def test_no_page_of_the_site_loads_anything_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is not installed")
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    commands.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))
    pages = [page for page in tmp_path.glob("*.html") if page.name != "404.html"]
    assert {page.stem for page in pages} == {page.stem for page in (ROOT / "docs").glob("*.md")}
    for page in pages:
        found = [a or b for a, b in re.findall(LOADS, page.read_text(encoding="utf-8"))]
        assert found
        for target in found:
            assert not re.match(r"\w+:|//", target), f"{page.name} loads {target}"
            assert (tmp_path / target.split("?")[0]).is_file(), f"{page.name}: {target}"
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:\w+:)?//", style.read_text(encoding="utf-8")), style
