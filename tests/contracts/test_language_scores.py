"""Tasks from local files, captions, and language before and after."""

import bz2
import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from monoformer.config.data import FolderData, MixtureData, ParquetData, ScenesData, TextData
from monoformer.config.evaluate import CaptionScores, ForgettingScores, TaskScores, TextScores
from monoformer.document import Document, Image, Text
from monoformer.evaluate.build import build_evaluator
from monoformer.evaluate.captions import COLUMNS, CaptionEvaluator, beside, caption_likelihoods, plain_words
from monoformer.evaluate.likelihood import continuation, read_layouts
from monoformer.evaluate.material import captioned
from monoformer.evaluate.tasks import TASKS, TaskEvaluator, encode_pair, read_tasks
from monoformer.pipeline import Pipeline
from monoformer.pretrained import export_llama, save_pretrained
from tests import tiny
from tests.laws.test_autoencoder_training import write_parquet

LINES = {
    "openbook_qa.jsonl": {"query": "the red circle is", "choices": ["large", "left of a square"], "gold": 1},
    "arc_easy.jsonl": {"query": "Question: what moves?", "choices": ["a circle", "red", "seen"], "gold": 0},
    "piqa.jsonl": {"query": "Question: what is seen\n", "choices": ["a square", "blue"], "gold": 1},
    "boolq.jsonl": {"query": "Passage: it moves.\nQuestion: is it seen?", "choices": ["no", "yes"], "gold": 0},
    "winogrande.jsonl": {"context_options": ["the a", "the square"], "continuation": "is seen.", "gold": 1},
}
HELLASWAG = "Walk: A red one moves. the blue one\n2\n[step] is  left\nis seen\nmoves [x]it\nis large\n"


def write_tasks(path: Path) -> Path:
    """A folder with a few items of each of the seven tasks."""
    path.mkdir(parents=True, exist_ok=True)
    for name, line in LINES.items():
        (path / name).write_text((json.dumps(line) + "\n") * 3, encoding="utf-8")
    (path / "arc_challenge.jsonl").write_text(json.dumps(LINES["arc_easy.jsonl"]) + "\n", encoding="utf-8")
    (path / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(HELLASWAG.encode() * 2))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tasks(tmp_path_factory.mktemp("tasks")))


def test_prompts_are_those_of_lm_eval(folder: str) -> None:
    first = {name: items[0] for name, items in read_tasks(folder, ()).items()}
    assert list(first) == list(TASKS)
    assert first["hellaswag"].contexts[0] == "Walk: A red one moves. The blue one"
    assert first["hellaswag"].choices == (" is left", "is seen", "moves it", "is large")
    assert first["hellaswag"].gold == 2
    assert first["openbookqa"].contexts == ("the red circle is",) * 2
    assert first["arc_easy"].contexts[2] == "Question: what moves?\nAnswer:"
    assert first["piqa"].contexts[1] == "Question: what is seen\nAnswer:"
    assert first["boolq"].contexts[0] == "it moves.\nQuestion: is it seen?\nAnswer:"
    assert first["winogrande"].contexts == ("the a", "the square")
    assert first["winogrande"].choices == ("is seen.", "is seen.")
    assert [len(items) for items in read_tasks(folder, ("boolq", "piqa"), count=2).values()] == [2, 2]


def test_blanks_at_the_end_of_a_context_go_to_what_follows() -> None:
    tokenizer = tiny.tokenizer()
    context, following = encode_pair(tokenizer, "the red  ", "circle")
    assert context == [tokenizer.bos, *tokenizer.encode("the red")]
    assert context[1:] + following == tokenizer.encode("the red  circle")
    assert encode_pair(tokenizer, "", "red", bos=False) == ([tokenizer.bos], tokenizer.encode("red"))
    assert encode_pair(tokenizer, "a", " red", bos=False)[0] == tokenizer.encode("a")


def test_accuracy_is_by_likelihood_and_by_likelihood_a_character(folder: str) -> None:
    pretrained = tiny.pretrained()
    items = read_tasks(folder, ())
    found = dict(TaskEvaluator(pretrained=pretrained, items=items).run())
    assert found["seven_tasks_mean"] == pytest.approx(
        sum(found[f"{name}_accuracy{'_normalized' if form.normalized else ''}"] for name, form in TASKS.items()) / 7
    )
    for name in ("arc_easy", "winogrande"):
        item = items[name][0]
        nats = []
        for context, choice in zip(item.contexts, item.choices, strict=True):
            pair = encode_pair(pretrained.tokenizer, context, f" {choice}")
            nats.append(read_layouts(pretrained, [continuation(*pair, length=160)])[0].nats)
        assert found[f"{name}_accuracy"] == (min(range(len(nats)), key=nats.__getitem__) == item.gold)
        if name == "arc_easy":
            each = [value / len(choice) for value, choice in zip(nats, item.choices, strict=True)]
            right = min(range(len(each)), key=each.__getitem__) == item.gold
            assert found["arc_easy_accuracy_normalized"] == right


def test_tasks_that_are_not_there_are_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no task 'piqq'; did you mean 'piqa'"):
        read_tasks(folder, ("piqq",))
    with pytest.raises(ValueError, match=r"does not hold hellaswag_val_full\.txt\.bz2"):
        read_tasks(str(tmp_path), ("hellaswag",))
    (tmp_path / "boolq.jsonl").write_text('{"query": "a", "gold": 0}\n')
    with pytest.raises(ValueError, match=r"boolq\.jsonl line 1 is no item of boolq: KeyError 'choices'"):
        read_tasks(str(tmp_path), ("boolq",))
    for gold in (5, -1, 2):
        (tmp_path / "piqa.jsonl").write_text("\n")
        with pytest.raises(ValueError, match=r"piqa\.jsonl holds no item of piqa"):
            read_tasks(str(tmp_path), ("piqa",))
        (tmp_path / "piqa.jsonl").write_text(json.dumps({"query": "a", "choices": ["b", "c"], "gold": gold}))
        with pytest.raises(ValueError, match=rf"piqa\.jsonl line 1 .* of 2 choices is counted from 0, but is {gold}"):
            read_tasks(str(tmp_path), ("piqa",))
    whole = tmp_path / "hellaswag_val_full.txt"
    whole.write_text("\n".join(["Ball: he throws", "4", *"abcd"]))
    with pytest.raises(ValueError, match=r"hellaswag_val_full\.txt line 2 is to name one of four endings"):
        read_tasks(str(tmp_path), ("hellaswag",))
    whole.unlink()
    (tmp_path / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(b"words " * 999)[:30])
    with pytest.raises(ValueError, match=r"hellaswag_val_full\.txt\.bz2 is damaged"):
        read_tasks(str(tmp_path), ("hellaswag",))
    with pytest.raises(ValueError, match="there are no tasks; name their folder"):
        build_evaluator(TaskScores(), Pipeline(tiny.pretrained(), slots=2), data=None)


def test_real_files_are_read(shared_data: Path) -> None:
    items = read_tasks(str(shared_data / "eval"), ("openbookqa", "winogrande", "arc_challenge"))
    assert {name: len(found) for name, found in items.items()} == {
        "openbookqa": 500, "winogrande": 1267, "arc_challenge": 1172
    }  # fmt: skip
    assert all(item.gold < len(item.choices) == len(item.contexts) for found in items.values() for item in found)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["adaln", "token"])
def test_the_likelihood_of_a_caption_is_that_of_the_whole_document(mode: str) -> None:
    pretrained = tiny.pretrained(mode)
    pipeline = Pipeline(pretrained, slots=2)
    image = tiny.image(Random(1), size=(8, 8), role="user")
    captions = ["a red circle", "what", "a large blue square is left of the circle"]
    found = caption_likelihoods(pipeline, image, captions, chunk=2)
    for caption, value in zip(captions, found, strict=True):
        layout = pretrained.sequencer().document(Document((image, Text(caption, "assistant"))))
        batch = tiny.in_rows([layout], rows=1)
        logs = pretrained.model.text(tiny.hidden_of(pretrained.model, batch)).log_softmax(-1)[0]
        where = (batch.labels[0] != -100).nonzero()[:, 0]
        assert len(where) == len(pretrained.tokenizer.encode(caption)) + 1
        assert value == pytest.approx(float(logs[where, batch.labels[0][where]].sum()), rel=1e-4)
    assert len(pipeline.engine.free) == 2
    with pytest.raises(ValueError, match="more than the model reads"):
        caption_likelihoods(pipeline, image, ["red circle " * 200])


def test_likelihoods_leave_nothing_behind_that_later_captions_would_take_for_their_own() -> None:
    pretrained = tiny.pretrained(image_sizes=((32, 32),))
    pipeline = Pipeline(pretrained, slots=2)
    black, white = (Image(pixels=torch.full((3, 32, 32), level, dtype=torch.uint8)) for level in (0, 255))

    def written(image: Image) -> str:
        return pipeline.caption(image.to_pil(), temperature=1.0, seed=3)[0]

    before = written(black)
    assert written(white) != before, "the pictures can be told apart"
    for _ in range(2):  # slots
        assert written(black) == before
        caption_likelihoods(pipeline, white, ["a red circle", "what"])
        assert written(black) == before


def test_a_caption_is_found_by_likelihood_alone() -> None:
    pretrained = tiny.pretrained(image_sizes=((32, 32),))
    pipeline = Pipeline(pretrained, slots=2)
    scores = CaptionScores(count=12, among=10, cider=False)
    data = ScenesData(size=32)
    share = dict(build_evaluator(scores, pipeline, data=data).run())["caption_found_among_10"]
    assert 0 <= share < 0.6, "a random network finds one in ten"
    evaluator = build_evaluator(replace(scores, drawn=True), pipeline, data=data)
    assert evaluator.total == 24, "each is drawn, then shown"
    assert 0 <= dict(evaluator.run())["drawing_found_among_10"] < 0.6
    with torch.no_grad():
        pretrained.model.text_head.weight.zero_()
    evaluator = build_evaluator(scores, pipeline, data=data)
    assert evaluator.total == 12
    assert dict(evaluator.run())["caption_found_among_10"] <= 0.2, "who cannot tell does not find"
    with pytest.raises(ValueError, match=r"10 captions are asked for, but the 4 pictures have 4"):
        build_evaluator(replace(scores, count=4), pipeline, data=data)
    shown = [(torch.zeros(3, 32, 32, dtype=torch.uint8), captions) for captions in (("a", "b"), ("b", "a"))]
    with pytest.raises(ValueError, match="2 captions are asked for"):  # no rival is left: either has the other's
        CaptionEvaluator(pipeline=pipeline, shown=shown, among=2, cider=False)
    with pytest.raises(ValueError, match="no pictures with captions"):
        build_evaluator(scores, pipeline, data=TextData(files=("a",)))


def test_the_pictures_are_those_of_the_source_that_is_named_held_out_or_seen(tmp_path: Path) -> None:
    (tmp_path / "things").mkdir()
    write_parquet(tmp_path / "things" / "train.parquet")
    things = ParquetData(files=(str(tmp_path / "things" / "train.parquet"),), caption="{name}", size=16, holdout=2)
    data = MixtureData(sources=(ScenesData(size=16), things), weights=(1.0, 1.0))
    scores = CaptionScores(count=100, among=2, cider=False, source="things")
    held = {own[0] for _, own in captioned(scores, data)}
    seen = {own[0] for _, own in captioned(replace(scores, seen=True), data)}
    assert (len(held), len(seen)) == (2, 4)
    assert held | seen == {f"thing {number}" for number in range(6)}
    assert len(captioned(replace(scores, source=""), data)) == 100, "else of the first source, which has no end"
    with pytest.raises(ValueError, match="no source 'thigs'; did you mean 'things'"):
        captioned(replace(scores, source="thigs"), data)
    with pytest.raises(ValueError, match="source and seen choose among the run's own"):
        replace(scores, data=things)

    scenes = [captioned(replace(scores, source="scenes", seen=seen, count=8), data) for seen in (False, True)]
    assert not {own for _, own in scenes[0]} & {own for _, own in scenes[1]}
    pipeline = Pipeline(tiny.pretrained(image_sizes=((16, 16),)), slots=2)
    figures = [
        name
        for seen in (False, True)
        for name, _ in build_evaluator(replace(scores, seen=seen, drawn=True), pipeline, data=data).run()
    ]
    assert figures == ["drawing_found_among_2", "seen_drawing_found_among_2"]


def test_pictures_that_cannot_be_used_are_not_shown(tmp_path: Path) -> None:
    for number in range(4):
        tiny.image(Random(number), size=(16, 16)).to_pil().save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_bytes(f"caf\u00e9 {number}".encode("latin-1" if number == 1 else "utf-8"))
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    shown = captioned(CaptionScores(count=4, among=2, seen=True), FolderData(root=str(tmp_path), size=16))
    assert {captions for _, captions in shown} == {("caf\u00e9 0",), ("caf\u00e9 3",)}
    with pytest.raises(ValueError, match="too small to hold out pictures"):
        captioned(CaptionScores(count=4, among=2), FolderData(root=str(tmp_path), size=16))


def test_drawings_stand_beside_the_true_pictures() -> None:
    def plain(level: int) -> torch.Tensor:
        return torch.full((3, 16, 16), level, dtype=torch.uint8)

    shown = [(plain(number), (f"thing {number}",)) for number in range(10)]
    made = [plain(200 + number) for number in range(10)]
    picture = beside(shown, made)
    wide = picture.width // COLUMNS
    for number in range(COLUMNS):
        middle = number * wide + wide // 2
        assert picture.getpixel((middle - 40, 60)) == (number,) * 3
        assert picture.getpixel((middle + 40, 60)) == (200 + number,) * 3
    assert picture.height > 2 * wide / 2, "two rows"


def test_cider_is_that_of_the_library() -> None:
    pytest.importorskip("pycocoevalcap", reason="CIDEr needs pycocoevalcap (the extra `evaluate`)")
    from monoformer.evaluate.captions import cider

    references = [["A dog runs.", "a brown dog, running"], ["Two cats!", "two small cats"], ["a red car on a road"]]
    perfect = cider(["a dog runs", "two small cats", "A red car on a road."], references)
    worse = cider(["a dog", "a red car", "cats"], references)
    assert perfect > 4
    assert 0 < worse < perfect / 2
    assert perfect.low < perfect < perfect.high


def test_words_lose_case_and_punctuation() -> None:
    assert (
        plain_words("A dog's ball, (red) - isn't it?  Oui: \u00e9t\u00e9.")
        == "a dog's ball red isn't it oui \u00e9t\u00e9"
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model of ours, and a language model with the same text path, exported; each by its folder."""
    path = tmp_path_factory.mktemp("models")
    own = tiny.pretrained(qk_norm=False)
    save_pretrained(path / "own", own)
    export_llama(path / "llama", own.model, own.tokenizer)
    return {"own": str(path / "own"), "llama": str(path / "llama")}


def test_nothing_is_forgotten_by_the_same_model(models: dict[str, str], folder: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" ".join(f"the {word} is seen." for word in tiny.WORDS * 3))
    text = TextScores(data=TextData(files=(str(tmp_path / "text.txt"),), characters=80, holdout=0.9))
    scores = ForgettingScores(text=text, tasks=TaskScores(folder=folder, tasks=("arc_easy", "piqa")))
    pipeline = Pipeline(tiny.pretrained(qk_norm=False), slots=2)
    for before in models.values():
        evaluator = build_evaluator(scores, pipeline, data=None, start=before)
        found = dict(evaluator.run())
        assert found["ratio_text_perplexity"] == pytest.approx(1, rel=1e-4)
        assert found["difference_text_bits_per_byte"] == pytest.approx(0, abs=1e-4)
        assert found["difference_text_bits_per_byte"].low < 0 < found["difference_text_bits_per_byte"].high
        assert found["before_piqa_accuracy"] == found["after_piqa_accuracy"]
    other = tiny.pretrained(qk_norm=False)
    with torch.no_grad():
        other.model.text_head.weight.zero_()
    found = dict(build_evaluator(scores, Pipeline(other, slots=2), data=None, start=models["own"]).run())
    assert found["after_text_perplexity"] == pytest.approx(other.model.config.vocabulary, rel=1e-4)
    assert found["ratio_text_perplexity"] == pytest.approx(
        found["after_text_perplexity"] / found["before_text_perplexity"]
    )


def test_forgetting_needs_a_model_before_and_something_to_read(models: dict[str, str]) -> None:
    pipeline = Pipeline(tiny.pretrained(), slots=2)
    with pytest.raises(ValueError, match="trained from nothing; name another"):
        build_evaluator(ForgettingScores(), pipeline, data=None)
    with pytest.raises(ValueError, match="there is nothing to read"):
        build_evaluator(ForgettingScores(before=models["own"]), pipeline, data=None)


def test_whole_files_are_read_in_windows_unless_they_were_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the red circle moves. " * 60)
    (tmp_path / "b.txt").write_text("a square")
    scores = TextScores(data=TextData(files=(str(tmp_path),)), whole=True)
    pipeline = Pipeline(tiny.pretrained(), slots=2)
    evaluator = build_evaluator(scores, pipeline, data=None)
    assert evaluator.total > 4
    found = dict(evaluator.run())
    assert found["text_word_perplexity"] > found["text_byte_perplexity"] > 1
    with pytest.raises(ValueError, match="may have seen what is tested"):
        build_evaluator(scores, pipeline, data=TextData(files=(str(tmp_path),)))
    shorter = TextScores(data=TextData(files=(str(tmp_path / "a.txt"),), characters=100))
    with pytest.raises(ValueError, match="may have seen what is tested"):  # the same text, named and cut otherwise
        build_evaluator(shorter, pipeline, data=TextData(files=(f"{tmp_path}/../{tmp_path.name}/",)))
    with pytest.raises(ValueError, match="there is no text to read"):
        build_evaluator(TextScores(), pipeline, data=FolderData())
    (tmp_path / "c.txt").write_text(" \n")
    assert build_evaluator(scores, pipeline, data=None).total == evaluator.total, "what is empty is no text"
    with pytest.raises(ValueError, match="holds no text; name other files"):
        build_evaluator(replace(scores, data=TextData(files=(str(tmp_path / "c.txt"),))), pipeline, data=None)
