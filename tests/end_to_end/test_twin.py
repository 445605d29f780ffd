"""The released model's recipe and its text-only twin at a tiny size, and the figure that compares them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from monoformer.cli.main import main
from monoformer.config.data import MixtureData
from monoformer.data.build import build_source
from monoformer.data.source import usable
from monoformer.document import Text
from monoformer.presets import PRESETS
from monoformer.pretrained import load_pretrained
from monoformer.train.metrics import read_metrics
from tests.laws.test_autoencoder_training import write_parquet

RUN = ["--train.steps=4", "--train.warmup=1", "--train.log-every=1", "--train.sample-every=0", "--sequence.window=64"]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two books."""
    folder = tmp_path_factory.mktemp("books")
    for book in range(2):
        paragraphs = [f"Chapter {number} of book {book}. It was night, and it rained." for number in range(100)]
        (folder / f"{book}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    return folder


def test_the_twin_has_the_same_network_and_no_pictures(books: Path) -> None:
    whole, twin = PRESETS["monoformer-mini"](), PRESETS["monoformer-mini-text"]()
    assert whole.model == twin.model == PRESETS["scenes"]().model
    assert whole.tokenizer == twin.tokenizer == PRESETS["scenes"]().tokenizer
    assert replace(whole.train, rows=twin.train.rows) == twin.train
    read: list[list[str]] = []
    for config in (whole, twin):
        assert isinstance(config.data, MixtureData)
        scenes, text = config.data.sources[:2]
        data = replace(config.data, sources=(scenes, replace(text, files=(str(books),))), weights=(1.0, 1.0))
        documents = list(usable(build_source(data, split="train", seed=0), 200))
        of_pictures = [document for document in documents if document.images]
        assert bool(of_pictures) == (config is whole)
        texts = [s.text for document in documents for s in document.segments if isinstance(s, Text)]
        read.append([text for text in texts if text.startswith("Chapter")])
    assert len(read[0]) > 50
    assert read[0] == read[1], "the same books in the same order"
    shares = [config.data.weights for config in (whole, twin)]  # type: ignore[union-attr]
    kinds = whole.data.sources[0]  # type: ignore[union-attr]
    stories = kinds.story / sum(getattr(kinds, k) for k in ("draw", "describe", "edit", "question", "story"))  # type: ignore[union-attr]
    assert shares[1] == pytest.approx((shares[0][0] * stories, shares[0][1]))


def test_both_train_from_one_start_and_are_compared(run: Path, books: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "emoji.parquet")
    start = [f"--from={run / 'model'}", *RUN, f"--data.sources.1.files={books}", "--data.sources.0.size=32"]
    emoji = [
        f"--data.sources.2.files={tmp_path / 'emoji.parquet'}", "--data.sources.2.size=32", "--data.sources.2.edit=0",
        "--data.sources.2.holdout=0", "--data.sources.2.holdout-pairs=0",
    ]  # fmt: skip
    main(["train", "monoformer-mini", *start, *emoji, f"--folder={tmp_path / 'mini'}", "--train.rows=4"])
    main(["train", "monoformer-mini-text", *start, f"--folder={tmp_path / 'twin'}"])
    losses = {name: read_metrics(tmp_path / name / "metrics.jsonl")[-1] for name in ("mini", "twin")}
    assert losses["mini"]["image_loss"] > 0 == losses["twin"]["image_loss"]
    ours, twin = (load_pretrained(tmp_path / name / "model") for name in ("mini", "twin"))
    assert ours.model.config == twin.model.config
    assert ours.tokenizer.size == twin.tokenizer.size

    text = [f"--forgetting.text.data.files={books}", "--forgetting.text.data.characters=300"]
    beside = [f"--forgetting.before={tmp_path / 'twin' / 'model'}", *text, f"--out={tmp_path / 'scores'}"]
    main(["evaluate", str(tmp_path / "mini" / "model"), "--suite", "forgetting", *beside])
    (suite,) = json.loads((tmp_path / "scores" / "scores.json").read_text())["suites"]
    value = {figure["name"]: figure["value"] for figure in suite["figures"]}
    assert value["before_text_perplexity"] != value["after_text_perplexity"]
    expected = value["after_text_perplexity"] / value["before_text_perplexity"]
    assert value["ratio_text_perplexity"] == pytest.approx(expected)
