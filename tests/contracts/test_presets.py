"""Presets: each builds without memory; the papers' have the papers' sizes; docs/paper-to-code.md says what is there."""

import ast
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from monoformer.cli.training import read_config
from monoformer.config.data import check_named
from monoformer.config.run import RunConfig
from monoformer.model.monoformer import MonoFormer, is_text
from monoformer.presets import PRESETS
from monoformer.presets.transfusion import SHAPES, SIZES, UNET_WIDTH, transfusion
from monoformer.train.build import build_run

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "paper-to-code.md").read_text(encoding="utf-8")
OURS = ("monoformer-mini", "monoformer-mini-text")
PAPERS = [name for name in PRESETS if name.startswith(("monoformer-", "transfusion-")) and name not in OURS]


@cache
def counts(name: str) -> tuple[float, float]:
    """Millions of parameters of the backbone and of the rest, with 32,000 tokens."""
    with torch.device("meta"):
        model = MonoFormer(replace(PRESETS[name]().model, vocabulary=32_000))
    text = sum(p.numel() for key, p in model.named_parameters() if is_text(key))
    return text / 1e6, sum(p.numel() for p in model.parameters()) / 1e6 - text / 1e6


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_says_how_to_run_it(name: str) -> None:
    backbone, images = counts(name)
    assert backbone > images or name.endswith("b-unet")
    config, doc = PRESETS[name](), PRESETS[name].__doc__ or ""
    assert config.name == name
    assert re.search(rf"^\s*monoformer train {re.escape(name)}( |$)", doc, flags=re.MULTILINE)
    assert "Two CPU cores" in doc or ("GPUs" in doc and "not run here" in doc) or "H100-days" in doc


def test_papers_sizes() -> None:
    expected = {
        "0.16b": 162.4,
        "0.37b": 373.9,
        "0.76b": 777.9,
        "1.4b": 1364.3,
        "7b": 6738.4,
    }  # the design's, digit by digit
    assert {size: SHAPES[size].millions for size in SIZES} == expected
    for size, millions in expected.items():
        for name in (f"transfusion-{size}", f"transfusion-{size}-unet"):
            assert f"{counts(name)[0]:.1f}" == f"{millions:.1f}", name
        assert abs(millions / 1000 / float(size[:-1]) - 1) < 0.04, "the paper's round name"
        unet = counts(f"transfusion-{size}-unet")[1] - counts(f"transfusion-{size}")[1]
        assert abs(unet / 270 - 1) < 0.04, f"{size}: the U-Net has {unet:.1f}M"
    for name in PAPERS[:3]:
        assert f"{counts(name)[0]:.1f}" == "1100.0"  # 1,100,048,384 is TinyLlama's own count


def test_the_recipes_are_those_of_the_papers() -> None:
    ours = PRESETS["monoformer-imagenet256"]()
    assert (ours.model.patch, ours.model.channels, ours.model.down, ours.model.time) == (2, 4, 8, "projected_token")
    assert ours.sequence.row > 256 + 1, "a row holds a picture of 16x16 patches"
    other = transfusion("7b", unet=True)()
    assert (other.model.channels, other.model.image_patches, other.model.unet_width) == (8, "unet", UNET_WIDTH)
    assert (other.sequence.noise_limit, other.train.image_weight, other.train.warmup) == (0.5, 5.0, 4000)
    assert other.train.rows * other.sequence.row == 2**21
    rate = other.train.optimizer.rate  # type: ignore[union-attr]
    assert rate * other.train.final_rate == pytest.approx(1.5e-5)


@pytest.mark.parametrize("name", PAPERS)
def test_data_that_nobody_named_is_refused_before_anything_is_loaded(name: str) -> None:
    with pytest.raises(ValueError, match=r"data\.(sources\.0\.files|root) is empty; give .* e\.g\. --data\."):
        build_run(PRESETS[name]())


def test_the_second_source_is_named_too() -> None:
    config = read_config(["monoformer-t2i", "--data.sources.0.files", "a.parquet"])
    with pytest.raises(
        ValueError, match=r"data\.sources\.1\.files is empty.*--data\.sources\.1\.files conversations\.jsonl"
    ):
        check_named(config.data)


def test_books_go_with_scenes_in_as_many_tokens() -> None:
    base, words, both = (PRESETS[name]() for name in ("scenes-quick", "text-quick", "scenes-text"))
    for config in (words, both):
        assert config.train.rows * config.sequence.row == base.train.rows * base.sequence.row
        assert replace(config.model, context=base.model.context) == base.model
    assert isinstance(base, RunConfig)


def rows() -> list[list[str]]:
    """The table of sizes, cell by cell."""
    lines = [line for line in PAGE.splitlines() if re.match(r"\| (monoformer|transfusion)-", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_sizes_is_what_the_presets_have() -> None:
    assert [row[0] for row in rows()] == ["monoformer-imagenet256", *(f"transfusion-{size}" for size in SIZES)]
    for name, layers, width, heads, mlp_width, backbone, paper, images, unet in rows():
        shape = PRESETS[name]().model
        assert [layers, width, heads.split()[0], mlp_width] == [
            str(n) for n in (shape.layers, shape.width, shape.heads, shape.mlp_width)
        ]
        assert [backbone, images] == [f"{number:.1f}" for number in counts(name)]
        assert abs(float(backbone) / 1000 / float(paper.removesuffix("B")) - 1) < 0.04
        assert unet == (f"{counts(f'{name}-unet')[1]:.1f}" if name.startswith("transfusion") else "-")


def defined(tree: ast.Module) -> set[str]:
    """Functions, classes, constants, and Class.member of a module."""
    names: set[str] = set()
    for outer in tree.body:
        for prefix, node in [
            ("", outer),
            *((f"{outer.name}.", n) for n in getattr(outer, "body", []) if hasattr(outer, "name")),
        ]:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {prefix + t.id for t in targets if isinstance(t, ast.Name)}
    return names


def test_every_name_on_the_page_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE))
    assert len(named) > 50
    for file, name in sorted(named):
        path = ROOT / "monoformer" / file
        assert path.is_file(), file
        assert name in defined(ast.parse(path.read_text(encoding="utf-8"))), f"{file}:{name}"
