"""docs/status.md says nothing that cannot be checked, and the warnings say what it says."""

import re
import subprocess
import warnings

import pytest
import torch

from monoformer.device import UNTRIED, announce
from monoformer.presets import PRESETS
from tests.pages import ROOT, read
from tests.status import PAGE, rows

PLACE = re.compile(r"never|\d{4}-\d{2}-\d{2} (?P<commit>[0-9a-f]{7,})")
PRESET = re.compile(r"^\| `([\w.*-]+)` \| ([^|]+) \|", flags=re.MULTILINE)


def known(commit: str) -> bool:
    """Whether the history has the commit."""
    return (
        subprocess.run(["git", "-C", ROOT, "cat-file", "-e", commit], capture_output=True, check=False).returncode == 0
    )


def test_every_row_has_a_proof_and_a_place() -> None:
    tables = read(PAGE).partition("## Features")[2].partition("## Presets")[0]
    assert len(rows()) == sum(line.startswith("| ") for line in tables.splitlines()) - 2, "a row is not of the form"
    for row in rows():
        assert (ROOT / row["proof"]).is_file(), row["proof"]
        for place in (row["here"], *row["others"].split(" | ")):
            assert PLACE.fullmatch(place), row


def test_every_commit_is_in_the_history() -> None:
    shallow = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--is-shallow-repository"], capture_output=True, check=False
    )
    if shallow.stdout.strip() != b"false" or not known("HEAD"):
        pytest.skip("the whole history is not here")
    named = {match["commit"] for match in PLACE.finditer(read(PAGE)) if match["commit"]}
    assert named
    assert not [commit for commit in named if not known(commit)]


def test_every_preset_is_listed() -> None:
    listed = {name for name, place in PRESET.findall(read(PAGE)) if PLACE.fullmatch(place.strip())}
    ours = {re.sub(r"transfusion-.*", "transfusion-*", name) for name in PRESETS} | {"autoencoder"}
    assert listed == ours


def test_warnings_are_of_the_devices_that_never_ran() -> None:
    places = [(row["here"], *row["others"].split(" | ")) for row in rows()]
    columns = zip(*(place for place in places if len(place) == 3), strict=True)
    never = {device for device, column in zip(("cpu", "cuda", "mps"), columns, strict=True) if {*column} == {"never"}}
    assert never == set(UNTRIED)
    announce.cache_clear()
    for device in UNTRIED:
        with pytest.warns(UserWarning, match=f"never run on {device}.*docs/status.md"):
            announce(device)
    with warnings.catch_warnings():  # a warning would be an error: cpu is tried, and the others were told once
        announce(torch.device("cpu").type)
        announce(UNTRIED[0])
    announce.cache_clear()
