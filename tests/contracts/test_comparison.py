"""The comparison with others can be checked: every cell about them leads to where it is said."""

import re

from tests.pages import read

PAGE = "docs/comparison.md"
NOTHING = re.compile(r"-|not (found|said|released)|no [\w ]+ found|left to the user|training code not found")
"""What needs no place: there is none."""
LINK = re.compile(r"\]\((https://[^)\s]+)\)")


def cells() -> list[tuple[str, str]]:
    """(system, cell) of all tables but the first, which says where the systems are."""
    tables = read(PAGE).split("\n## ")[2:]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for table in tables for line in table.splitlines() if line[:2] == "| "]
    return [(row[0].strip(), cell.strip()) for row in rows if row[0].strip() for cell in row[1:]]


def test_every_cell_about_another_system_says_where() -> None:
    found = [(name, cell) for name, cell in cells() if name != "**ours**"]
    assert len(found) > 100
    assert [(name, cell) for name, cell in found if not (LINK.search(cell) or NOTHING.fullmatch(cell))] == []


def test_links_into_repositories_name_a_commit() -> None:
    links = LINK.findall(read(PAGE))
    files = [link for link in links if "github.com" in link and "/blob/" in link]
    assert len(files) > 80
    assert all(re.search(r"/blob/[0-9a-f]{12}/", link) for link in files)
