"""docs/status.md says nothing that cannot be checked, and the warnings say what it says."""

import re
import subprocess
import warnings

import pytest
import torch

from monoformer import device
from monoformer.config.model import ModelConfig
from monoformer.config.run import RunConfig
from monoformer.device import TRIED, announce
from monoformer.presets import PRESETS
from monoformer.train.build import features_of
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


def proven() -> dict[str, dict[str, str]]:
    """By device, where and when each feature ran, by the name of its proof: `muon` for test_muon.py."""
    found: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {}, "mps": {}}
    for row in rows():
        places = (row["here"], *row["others"].split(" | "))
        if len(places) == 3:
            for kind, place in zip(found, places, strict=True):
                found[kind][re.sub(r".*/test_|\.py", "", row["proof"])] = place
    return found


def test_the_warnings_say_what_the_page_says() -> None:
    columns = proven()
    assert {kind: {name for name, place in columns[kind].items() if place != "never"} for kind in TRIED} == TRIED
    assert set(columns["cpu"].values()) != {"never"}


def test_where_nothing_ran_the_device_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "TRIED", {"cuda": frozenset()})
    device._warn_of.cache_clear()
    with pytest.warns(UserWarning, match=r"^this package has never run on cuda.*docs/status.md"):
        announce("cuda", "muon", "train")
    with warnings.catch_warnings(action="error"):
        announce("cuda", "lora")
        announce(torch.device("cpu").type, "lora")
    device._warn_of.cache_clear()


def test_where_something_ran_each_feature_that_did_not_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "TRIED", {"cuda": frozenset({"train", "engine"})})
    device._warn_of.cache_clear()
    with warnings.catch_warnings(action="error"):
        announce("cuda")
        announce("cuda", "train")
    with pytest.warns(UserWarning, match=r"^'muon' of this package has never run on cuda.*docs/status.md") as told:
        announce("cuda", "train", "muon")
    assert len(told) == 1
    with warnings.catch_warnings(action="error"):
        announce("cuda", "muon", "train")
    device._warn_of.cache_clear()


def test_what_code_announces_is_on_the_page() -> None:
    everything = RunConfig(model=ModelConfig(image_patches="unet", unet_width=8, experts="modality"))
    assert features_of(everything) == ["train", "muon", "unet", "experts"]
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "monoformer").rglob("*.py")]
    named = {
        name
        for text in texts
        for said in re.findall(r"announce\((.*)\)", text)
        for name in re.findall(r'"(\w+)"', said)
    }
    assert {"engine", "generate", "deterministic"} <= named
    assert {*named, "train", "muon", "lora", "unet", "experts", "latents", "vision", "cache"} <= proven()["cpu"].keys()
