"""Scores: perplexity of text, pictures judged by a classifier, and which scores fit which run."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from monoformer.cli.evaluation import _Evaluate, choose_scores
from monoformer.cli.options import parse
from monoformer.cli.training import read_config
from monoformer.config.data import MixtureData, ParquetData, ScenesData, TextData
from monoformer.config.evaluate import ClassScores, SceneScores, TextScores
from monoformer.config.run import to_json
from monoformer.document import Document, Text
from monoformer.evaluate.build import build_evaluator
from monoformer.evaluate.images import ClassEvaluator
from monoformer.evaluate.material import check_held_out
from monoformer.evaluate.resnet import ResNet, load_resnet
from monoformer.evaluate.text import TextEvaluator
from monoformer.pipeline import Pipeline
from monoformer.presets import PRESETS
from monoformer.randomness import generator
from tests import tiny

TEXTS = ("the red circle", "a", "the small blue square is left of what is seen", "é — what moves is a circle " * 3)
DOCUMENTS = [Document((Text(text),)) for text in TEXTS]


def one_by_one(pretrained: tiny.Pretrained) -> tuple[float, int]:
    """The loss of every document alone, unpacked, by the definition."""
    nats, tokens = 0.0, 0
    for document in DOCUMENTS:
        ids = torch.tensor([pretrained.sequencer().document(document).ids])
        positions = torch.arange(ids.shape[1])[None]
        mask = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        logits = pretrained.model.text(pretrained.model(ids, positions, mask)).double()
        logs = logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        nats, tokens = nats - float(logs.sum()), tokens + ids.shape[1] - 1
    return nats, tokens


@torch.no_grad()
def test_perplexity_is_that_of_each_document_alone() -> None:
    pretrained = tiny.pretrained()
    nats, tokens = one_by_one(pretrained)
    scores = dict(TextEvaluator(pretrained=pretrained, documents=DOCUMENTS, name="x").run())
    assert list(scores) == ["x_perplexity", "x_byte_perplexity", "x_word_perplexity", "x_bits_per_byte"]
    assert scores["x_perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    size = sum(len(text.encode()) for text in TEXTS)
    assert scores["x_byte_perplexity"] == pytest.approx(math.exp(nats / size), rel=1e-4)
    assert scores["x_bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-4)
    words = sum(len(text.split()) for text in TEXTS)
    assert scores["x_word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-3)
    assert scores["x_perplexity"].low < scores["x_perplexity"] < scores["x_perplexity"].high


def test_texts_without_blanks_have_no_perplexity_of_words() -> None:
    """A word as long as a paragraph: e to the power of its nats is beyond numbers, and nothing else is lost."""
    documents = [Document((Text("".join(chr(0x4E00 + (i * 37 + j) % 5000) for j in range(60))),)) for i in range(4)]
    scores = dict(TextEvaluator(pretrained=tiny.pretrained(), documents=documents, name="x").run())
    assert list(scores) == ["x_perplexity", "x_byte_perplexity", "x_bits_per_byte"]
    assert all(math.isfinite(value) for value in scores.values())


@torch.no_grad()
def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    pretrained = tiny.pretrained()
    pretrained.model.text_head.weight.zero_()
    scores = dict(TextEvaluator(pretrained=pretrained, documents=DOCUMENTS).run())
    assert scores["text_perplexity"] == pytest.approx(pretrained.model.config.vocabulary, rel=1e-5)


@torch.no_grad()
def test_a_text_longer_than_the_context_is_read_in_windows_each_token_once() -> None:
    pretrained = tiny.pretrained()
    long = Document((Text("what moves is seen " * 40),))
    evaluator = TextEvaluator(pretrained=pretrained, documents=[long], stride=50)
    nats, tokens = evaluator.loss()
    ids = pretrained.sequencer().document(long).ids
    assert sum(tokens) == len(ids) - 1 > 2 * pretrained.model.config.context
    assert evaluator.total == len(tokens) > 3
    # the last window alone: everything but its own new tokens is context
    length, start = 160, 50 * (evaluator.total - 1)
    window = torch.tensor([ids[start:]])
    mask = torch.ones(1, window.shape[1], window.shape[1], dtype=torch.bool).tril()
    hidden = pretrained.model(window, torch.arange(window.shape[1])[None], mask)
    logs = pretrained.model.text(hidden).double().log_softmax(-1)[0, :-1].gather(1, window[0, 1:, None])
    new = len(ids) - (start - 50 + length)
    assert nats[-1] == pytest.approx(-float(logs[-new:].sum()), rel=1e-4)
    with pytest.raises(ValueError, match="stride of 160, but the model reads 160 tokens"):
        TextEvaluator(pretrained=pretrained, documents=[long], stride=160)


def judge(folder: Path) -> Path:
    """A file of a random network with one block a stage."""
    network = ResNet(1, ("red", "blue", "green"), (0.5,) * 3, (0.25,) * 3)
    random = generator("judge")
    state = {
        name: torch.randn(tensor.shape, generator=random).abs() if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    metadata = {"classes": json.dumps(network.classes), "mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.25, 0.25]"}
    save_file(state, folder / "judge.safetensors", metadata)
    return folder / "judge.safetensors"


def test_a_judge_comes_back_from_its_file(tmp_path: Path) -> None:
    network = load_resnet(judge(tmp_path))
    assert (network.classes, len(network.layer1)) == (("red", "blue", "green"), 1)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=generator("pixels"), dtype=torch.uint8)
    with torch.no_grad():
        features, logits = network(pixels)
        alone, _ = network(pixels[1:])
    assert (features.shape, logits.shape) == ((2, 64), (2, 3))
    torch.testing.assert_close(alone[0], features[1])
    assert not network.training


def test_files_that_are_no_judge_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.*cannot be read"):
        load_resnet(tmp_path / "none")
    save_file({"a": torch.zeros(1)}, tmp_path / "bare")
    with pytest.raises(ValueError, match=r"metadata of .*bare must hold classes, mean and std"):
        load_resnet(tmp_path / "bare")
    save_file({"a": torch.zeros(1)}, tmp_path / "other", {"classes": '["x"]', "mean": "[0,0,0]", "std": "[1,1,1]"})
    with pytest.raises(ValueError, match="holds another network"):
        load_resnet(tmp_path / "other")


class Brightness:
    """A judge by the mean value of a picture: dark, middle or bright."""

    classes = ("dark", "middle", "bright")

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean = pixels.float().mean(dim=(1, 2, 3)) / 255
        return pixels.float().mean(dim=(2, 3)), -(mean[:, None] - torch.tensor([0.0, 0.5, 1.0])).abs()


def test_pictures_are_judged_by_what_was_asked() -> None:
    pipeline = Pipeline(tiny.pretrained(), slots=8)
    real = [torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (0, 100, 200)]
    evaluator = ClassEvaluator(
        pipeline=pipeline, judge=Brightness(), real=real, prompt="a {}", count=7, seed=3, chunk=3
    )
    scores = dict(evaluator.run())
    drawn = pipeline.generate_images([f"a {Brightness.classes[i % 3]}" for i in range(7)], seed=3)
    pixels = torch.stack([tiny.Image.from_pil(picture).pixels for picture in drawn])
    _, logits = Brightness()(pixels)
    right = (logits.argmax(1) == torch.arange(7) % 3).float().mean()
    assert scores["class_right"] == pytest.approx(float(right))
    assert scores["frechet_distance"] > 0


def test_scores_that_do_not_fit_the_run_are_refused(tmp_path: Path) -> None:
    pipeline = Pipeline(tiny.pretrained(), slots=8)
    with pytest.raises(ValueError, match="this one trains on none"):
        build_evaluator(SceneScores(), pipeline, data=TextData(files=("a",)))
    book = TextData(files=("a",), characters=100)
    for trained in (replace(book, characters=200), MixtureData(sources=(replace(book, holdout=0.1),), weights=(1.0,))):
        with pytest.raises(ValueError, match="may have seen what is tested"):
            check_held_out(book, trained)
    with pytest.raises(ValueError, match="holdout above 0"):
        check_held_out(replace(book, holdout=0.0), replace(book, holdout=0.0))
    for trained in (book, ScenesData(), replace(book, files=("b",), holdout=0.3), None):
        check_held_out(book, trained)


def test_contradicting_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one task"):
        SceneScores(tasks=())
    with pytest.raises(ValueError, match=r"hold \{\} once"):
        ClassScores(judge="x", prompt="a picture")
    with pytest.raises(ValueError, match="count of 2 or more"):
        ClassScores(judge="x", count=1)
    with pytest.raises(ValueError, match="count of 1 or more"):
        TextScores(count=0)


def test_classes_of_a_parquet_file_by_a_real_judge(tmp_path: Path, shared_data: Path) -> None:
    real = ParquetData(
        files=(str(shared_data / "emoji128" / "train.parquet"),), caption="{name}", size=32, holdout=2950
    )
    score = ClassScores(judge=str(judge(tmp_path)), real=real, count=4, prompt="{}")
    pipeline = Pipeline(tiny.pretrained(image_sizes=((32, 32),)), slots=8)
    for missing in (replace(score, judge=""), replace(score, real=ParquetData())):
        with pytest.raises(ValueError, match=r"need a judge, .* and real pictures: --classes.judge FILE"):
            build_evaluator(missing, pipeline, data=TextData())
    scores = dict(build_evaluator(score, pipeline, data=TextData()).run())
    assert 0 <= scores["class_right"] <= 1
    assert scores["frechet_distance"] > 0


def test_a_seed_without_effect_is_refused() -> None:
    for suites in (["tasks"], ["text", "forgetting"]):
        with pytest.raises(ValueError, match=f"--seed has no effect on {', '.join(suites)}"):
            choose_scores(parse(_Evaluate, ["model", "--suite", *suites, "--seed", "4"], command="evaluate"), None)
    asked = parse(_Evaluate, ["model", "--suite", "tasks", "scenes", "--seed", "4"], command="evaluate")
    assert [getattr(score, "seed", None) for score in choose_scores(asked, None)] == [None, 4]


def test_a_file_of_settings_is_named_in_either_way(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(to_json(replace(PRESETS["scenes"](), seed=5))))
    for named in ([f"--config={file}"], ["--config", str(file)]):
        assert read_config([*named, "--train.steps=700"]).seed == 5
        assert read_config([*named, "--train.steps=700"]).train.steps == 700
