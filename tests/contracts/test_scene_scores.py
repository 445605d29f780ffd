"""Scene scores on known cases: who draws perfectly, who draws at random, who draws what it has learned by heart."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from PIL import Image as PILImage

from monoformer.config.data import ScenesData
from monoformer.config.evaluate import CompositionScores
from monoformer.data.scenes import (
    COLOURS,
    KINDS,
    Describing,
    Drawing,
    Edit,
    Question,
    Scene,
    Scenes,
    answer,
    caption,
    describe,
    draw,
    parse,
    read_instruction,
    sample_scene,
)
from monoformer.data.scenes.omission import LeftOutThings
from monoformer.document import Image, Text
from monoformer.evaluate.build import build_evaluator
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.scenes import SceneEvaluator, to_picture
from monoformer.pipeline import Pipeline
from tests import tiny

DATA = ScenesData(size=32, objects=(1, 2))
COUNT = 24


def seen(picture: PILImage.Image) -> Scene:
    scene = parse(Image.from_pil(picture).pixels)
    assert scene is not None
    return scene


class Perfect:
    """Does everything right: it knows the answers."""

    def __init__(self, data: ScenesData = DATA) -> None:
        self.scenes = Scenes(data, split="test")
        self.known = {self.scenes.drawing(i).caption: self.scenes.drawing(i).scene for i in range(COUNT)}

    def generate_images(self, prompts: Sequence[str], *, seed: Sequence[int]) -> list[PILImage.Image]:
        return [to_picture(draw(self.known[prompt], 32)) for prompt in prompts]

    def caption(self, pictures: Sequence[PILImage.Image], **_: object) -> list[str]:
        found = [describe(seen(picture), rng=Random(0)) for picture in pictures]
        return [caption(description) for description in found if description]

    def answer(self, pictures: Sequence[PILImage.Image], questions: Sequence[str], **_: object) -> list[str]:
        return [answer(question, seen(picture)) or "" for picture, question in zip(pictures, questions, strict=True)]

    def edit(
        self, pictures: Sequence[PILImage.Image], instructions: Sequence[str], *, seed: Sequence[int]
    ) -> list[PILImage.Image]:
        made = []
        for picture, text in zip(pictures, instructions, strict=True):
            instruction = read_instruction(text)
            assert instruction is not None
            made.append(to_picture(draw(instruction.apply(seen(picture), Random(0)), 32)))
        return made


class ByChance(Perfect):
    """Draws any scene, says any caption, yes to every question."""

    def generate_images(self, prompts: Sequence[str], *, seed: Sequence[int]) -> list[PILImage.Image]:
        return [to_picture(draw(sample_scene(Random(i), 2, split=None), 32)) for i in seed]

    def caption(self, pictures: Sequence[PILImage.Image], **_: object) -> list[str]:
        return ["a large red circle on a white background"] * len(pictures)

    def answer(self, pictures: Sequence[PILImage.Image], questions: Sequence[str], **_: object) -> list[str]:
        return ["yes"] * len(pictures)

    def edit(
        self, pictures: Sequence[PILImage.Image], instructions: Sequence[str], *, seed: Sequence[int]
    ) -> list[PILImage.Image]:
        return list(pictures)


class Memoriser(Perfect):
    """Knows 200 pictures of training by heart and draws the one whose caption shares most words."""

    def __init__(self) -> None:
        training = Scenes(DATA, split="train")
        self.learned = [training.drawing(i) for i in range(200)]

    def generate_images(self, prompts: Sequence[str], *, seed: Sequence[int]) -> list[PILImage.Image]:
        best = [max(self.learned, key=lambda d: len({*d.caption.split()} & {*p.split()})) for p in prompts]
        return [to_picture(draw(found.scene, 32)) for found in best]


def scored(model: object, tasks: tuple[str, ...] = ("draw", "describe", "edit", "answer")) -> dict[str, float]:
    return dict(SceneEvaluator(model, DATA, count=COUNT, tasks=tasks, chunk=10).run())  # type: ignore[arg-type]


def test_who_does_everything_right_has_full_marks() -> None:
    scores = scored(Perfect())
    assert scores == dict.fromkeys(
        ("draw_exact", "draw_colour", "draw_colour_and_shape", "describe_exact", "edit_exact", "answer_exact"), 1.0
    )
    assert all(0.8 < score.low < score.high == 1 for name, score in scores.items() if name.endswith("exact"))


def test_who_draws_at_random_scores_by_chance() -> None:
    scores = scored(ByChance())
    assert (scores["draw_exact"], scores["describe_exact"], scores["edit_exact"]) == (0, 0, 0)
    assert scores["draw_colour"] < 0.5
    assert scores["draw_colour_and_shape"] < 0.2
    assert 0 < scores["answer_exact"] < 0.5, "some questions are answered by yes"


def test_who_learned_by_heart_is_found_out() -> None:
    scores = scored(Memoriser(), ("draw",))
    assert scores["draw_exact"] == 0, "held-out scenes never occur in training"
    assert scores["draw_colour"] > 0.6, "but near ones do"


def test_a_killed_evaluation_goes_on_to_the_same_figures(tmp_path: Path) -> None:
    pipeline = Pipeline(tiny.pretrained(image_sizes=((32, 32),)), slots=8)
    whole = dict(SceneEvaluator(pipeline, DATA, count=6, tasks=("draw", "describe"), chunk=2).run())

    def kill(count: int) -> None:
        raise KeyboardInterrupt

    for _ in range(2):  # each gets one chunk further
        journal = Journal(tmp_path / "begun", watch=kill)
        with pytest.raises(KeyboardInterrupt):
            dict(SceneEvaluator(pipeline, DATA, count=6, tasks=("draw", "describe"), chunk=2, journal=journal).run())
    watched: list[int] = []
    journal = Journal(tmp_path / "begun", watch=watched.append)
    again = SceneEvaluator(pipeline, DATA, count=6, tasks=("draw", "describe"), chunk=2, journal=journal)
    assert dict(again.run()) == whole
    assert sum(watched) == again.total == 12
    lines = (tmp_path / "begun" / "chunks.jsonl").read_text().splitlines()
    assert len(lines) == 6, "no chunk twice"


LEFT_OUT = ScenesData(size=32, objects=(1, 3), left_out=("red circle", "blue ring"), left_out_objects=2, caption=2.0)


def test_what_is_left_out_is_in_no_document() -> None:
    for split in ("train", "test"):
        scenes = Scenes(LEFT_OUT, split=split)  # type: ignore[arg-type]
        for index in range(150):
            example = scenes.example(index)
            words = [s.text for s in scenes.render(example).segments if isinstance(s, Text)]
            assert not any(pair in text for text in words for pair in LEFT_OUT.left_out), words
            match example:
                case Edit(before=before, after=after):
                    shown = [before, after]
                case Question(scene=scene):
                    shown = [scene]
                case Drawing(scene=scene) | Describing(scene=scene):
                    shown = [scene]
                case _:
                    shown = []
            for scene in shown:
                assert len(scene.things) in (1, 3)
                assert not {"red circle", "blue ring"} & {f"{t.colour} {t.shape}" for t in scene.things}


def test_composition_asks_for_what_was_left_out_and_only_for_that() -> None:
    pairs, numbers = (Scenes(LEFT_OUT, split="test", left_out=kind) for kind in ("pairs", "objects"))  # type: ignore[arg-type]
    for index in range(40):
        things = pairs.drawing(index).scene.things
        assert {"red circle", "blue ring"} & {f"{t.colour} {t.shape}" for t in things}
        assert len(things) in (1, 3)
        things = numbers.describing(index).scene.things
        assert len(things) == 2
        assert not {"red circle", "blue ring"} & {f"{t.colour} {t.shape}" for t in things}


def test_composition_scores() -> None:
    pipeline = Pipeline(tiny.pretrained(image_sizes=((32, 32),)), slots=8)
    evaluator = build_evaluator(CompositionScores(count=2), pipeline, data=LEFT_OUT)
    names = [name for name, _ in evaluator.run()]
    assert evaluator.total == 8
    assert names[0] == "left_out_pairs_draw_exact"
    assert names[-1] == "left_out_objects_describe_exact"
    named = CompositionScores(count=2, pairs=LEFT_OUT.left_out, objects=2)
    whole = ScenesData(size=32, objects=(1, 3))
    assert dict(build_evaluator(named, pipeline, data=whole).run()) == dict(evaluator.run()), "the same items"
    with pytest.raises(ValueError, match="nothing was left out of this model's training"):
        build_evaluator(CompositionScores(), pipeline, data=DATA)


def test_what_cannot_be_left_out_is_refused() -> None:
    with pytest.raises(ValueError, match="no colour 'rad'; did you mean 'red'"):
        LeftOutThings(["rad circle"], 0, "avoided")
    with pytest.raises(ValueError, match="a pair is a colour and a shape"):
        LeftOutThings(["circle"], 0, "avoided")
    with pytest.raises(ValueError, match="one of several numbers in"):
        ScenesData(objects=(2, 2), left_out_objects=2)
    with pytest.raises(ValueError, match="draw and describe"):
        CompositionScores(tasks=("edit",))


def test_with_nothing_left_out_everything_is_allowed() -> None:
    things = LeftOutThings([], 0, "avoided")
    assert things.allow(KINDS)
    assert not things.named_in(" ".join(COLOURS))
