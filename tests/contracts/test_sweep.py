"""Studies: files that are wrong are refused before anything runs; jobs, digests, results and the table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monoformer.cli.training import read_config
from monoformer.config.data import ScenesData
from monoformer.config.sweep import SweepConfig, SweepRun, load_sweep
from monoformer.data.scenes import Scenes
from monoformer.data.scenes.source import Edit, Story
from monoformer.document import Image
from monoformer.model.monoformer import MonoFormer
from monoformer.sweep import (
    Job,
    append_result,
    due,
    figures,
    latest,
    plan,
    published,
    read_results,
    totals,
    write_table,
)

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "reproduce").glob("*.toml"))


def jobs(sweep: SweepConfig, folder: str = "runs/x") -> list[Job]:
    return plan(sweep, Path(folder), read=read_config)


def study(*runs: SweepRun, **fields: object) -> SweepConfig:
    return SweepConfig(**{"title": "t", "preset": "scenes-quick", "runs": runs, **fields})  # type: ignore[arg-type]


TWO = study(SweepRun(name="a"), SweepRun(name="b", overrides="--from @a --train.steps=70"), seeds=(0, 1))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_study_is_well_formed(file: Path) -> None:
    made = jobs(load_sweep(file))
    assert len({job.digest for job in made}) == len(made)
    assert len({job.config.folder for job in made}) == len(made)
    table = (ROOT / "reproduce" / "README.md").read_text(encoding="utf-8")
    assert f"| {file.name} |" in table
    starts = {needed.config.model_path for job in made for needed in job.needs}
    tokens = {j.config.train.rows * j.config.sequence.row for j in made if j.config.model_path not in starts}
    assert len(tokens) == 1 or "tokens a step differ" in file.read_text(encoding="utf-8"), tokens
    assert f"| {len(made)} |" in next(line for line in table.splitlines() if line.startswith(f"| {file.name} |"))


def test_the_sizes_of_the_scaling_study_are_what_they_are_called() -> None:
    for job in jobs(load_sweep(ROOT / "reproduce" / "scaling.toml")):
        with torch.device("meta"):
            network = MonoFormer(replace(job.config.model, vocabulary=job.config.tokenizer.vocabulary))
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        assert millions == pytest.approx(float(job.run.name.removesuffix("M")), rel=0.1)


def test_there_are_studies() -> None:
    assert len(FILES) == 11


def test_jobs_come_in_order_and_start_from_the_same_seed() -> None:
    made = jobs(TWO)
    assert [job.name for job in made] == ["a-seed0", "b-seed0", "a-seed1", "b-seed1"], (
        "all variants of a seed, then the next"
    )
    for first, second in ((made[0], made[1]), (made[2], made[3])):
        assert second.config.start == str(first.config.model_path)
        assert second.needs == (first,)
        assert second.config.seed == first.seed
    assert made[1].config.train.steps == 70
    assert made[0].arguments == ("scenes-quick", "--seed=0")
    assert made[1].asked == ("scenes-quick", "--from", "@a", "--train.steps=70", "--seed=0")


def test_what_a_job_starts_from_is_done_before_it_whatever_the_order_of_seeds() -> None:
    base, other = SweepRun(name="a", seeds=(1, 0)), SweepRun(name="b", overrides="--from=@a", seeds=(0, 1))
    made = [job.name for job in jobs(study(base, other))]
    for seed in (0, 1):
        assert made.index(f"a-seed{seed}") < made.index(f"b-seed{seed}")


def test_published_results_count_by_what_was_asked_and_models_that_are_gone_are_made_again(tmp_path: Path) -> None:
    made = jobs(TWO, str(tmp_path))
    records = [{"digest": "of an older version", "run": job.run.name, "asked": list(job.asked)} for job in made]
    assert due(made, records) == made
    assert due(made, published(made, records)) == []
    assert due(made, published(made, records[:3])) == made[2:], "b-seed1, and a-seed1 that it starts from"
    folder = made[2].config.model_path
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert due(made, published(made, records[:3])) == made[3:]
    assert published(made, [{"digest": made[0].digest, "run": "a", "asked": ["scenes-quick", "--seed=9"]}]) == []


def test_an_option_given_twice_has_its_last_value() -> None:
    (job,) = jobs(study(SweepRun(name="a", overrides="--train.steps 50"), overrides="--train.steps 30 --train.rows 4"))
    assert (job.config.train.steps, job.config.train.rows) == (50, 4)


def test_a_single_seed_serves_all() -> None:
    first = SweepRun(name="a", seeds=(5,))
    made = jobs(study(first, SweepRun(name="b", overrides="--tokenizer.path=@a"), seeds=(0, 1)))
    assert {job.config.tokenizer.path for job in made[1:]} == {str(made[0].config.model_path)}


def test_digests_follow_what_matters_and_nothing_else() -> None:
    before = jobs(TWO)
    assert [job.digest for job in jobs(TWO, "elsewhere")] == [job.digest for job in before], "not where it lies"
    changed = jobs(replace(TWO, runs=(replace(TWO.runs[0], overrides="--train.rows 9"), TWO.runs[1])))
    assert not {job.digest for job in changed} & {job.digest for job in before}, "what starts from another is another"
    renamed = jobs(replace(TWO, title="u", runs=(replace(TWO.runs[0], name="c"),)))
    assert [job.digest for job in renamed] == [job.digest for job in before if job.run.name == "a"]


def test_other_scores_are_another_result_of_the_same_run(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    text = 'title = "t"\npreset = "scenes-quick"\n[[runs]]\nname = "a"\n[[scores]]\nkind = "SceneScores"\ncount = {}\n'
    made = []
    for count in (8, 9):
        file.write_text(text.format(count), encoding="utf-8")
        made += jobs(load_sweep(file))
    assert made[0].config == made[1].config
    assert made[0].digest != made[1].digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no sweep file"),
        ("title =", "is not valid TOML"),
        ('title = "t"', "needs runs"),
        ('title = "t"\nrun = 1', r"has no field 'run'; did you mean 'runs'\?"),
        ('title = "t"\n[[runs]]\nname = "a"', "has no preset"),
        ('title = "t"\npreset = "x"\nseeds = [0, 0]\n[[runs]]\nname = "a"', "needs seeds that differ"),
        ('title = "t"\npreset = "x"\n[[runs]]\nname = "a b"', "use letters, digits"),
        ('title = "t"\npreset = "x"\n[[runs]]\nname = "a"\n[[runs]]\nname = "a"', "two runs are named 'a'"),
        (
            'title = "t"\npreset = "x"\n[[runs]]\nname = "a"\n[[scores]]\nkind = "Scens"',
            'needs a "kind" among SceneScores',
        ),
        (
            'title = "t"\npreset = "x"\n[[runs]]\nname = "a"\nscores = ["scene"]\n[[scores]]\nkind = "SceneScores"',
            "did you mean 'scenes'",
        ),
    ],
)
def test_files_that_are_wrong(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_sweep(tmp_path / "s.toml")


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([SweepRun(name="a", overrides="--from @b"), SweepRun(name="b")], "no run above it has that name"),
        ([SweepRun(name="alpha"), SweepRun(name="b", overrides="--from @alhpa")], "did you mean 'alpha'"),
        ([SweepRun(name="a", seeds=(1, 2)), SweepRun(name="b", overrides="--from=@a")], "@a has only 1, 2"),
        ([SweepRun(name="a", overrides="--model.width 100")], "even whole number"),
        ([SweepRun(name="a", overrides="--train.rows 2 --seed 5")], "overrides --seed, which the study decides"),
        ([SweepRun(name="a", overrides="--folder=elsewhere")], "overrides --folder=elsewhere, which the study"),
        ([SweepRun(name="a", preset="scenes-quik")], "did you mean 'scenes-quick'"),
    ],
)
def test_runs_that_are_wrong_are_refused_before_any_begins(runs: list[SweepRun], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jobs(study(*runs))


def test_a_torn_line_is_no_result_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, {"digest": "a"})
    with path.open("a") as file:
        file.write('{"digest": "b", "sco')
    append_result(path, {"digest": "c"})
    assert [record["digest"] for record in read_results(path)] == ["a", "c"]
    assert read_results(tmp_path / "none") == []


def record(job: Job, **more: object) -> dict[str, object]:
    kept = {"parameters": 10**6, "tokens": 10**6, "seconds": 60.0, "text_loss": 1.0, "image_loss": 0.5, "scores": {}}
    return {"digest": job.digest, "run": job.run.name, "seed": job.seed, **kept, **more}


def test_the_table_has_a_row_a_variant_with_mean_and_spread() -> None:
    a, c, b, d = jobs(TWO)
    records = [
        record(a, scores={"draw_exact": 0.5}),
        record(b, scores={"draw_exact": 0.7}),
        {"digest": c.digest, "error": "ValueError: no"},
        record(d),
        {"digest": "of an older preset"},
        record(a, scores={"draw_exact": 0.6}),  # the last one counts
    ]
    measured = record(a, weight_bytes=4 * 10**6, host_peak_gib=1.5)
    assert {"MB of weights": 4.0, "GiB at most": 1.5}.items() <= figures(measured).items()
    table = write_table(TWO, [a, b, c, d], records).splitlines()
    assert table[2].startswith(
        "| variant | seeds | M parameters | M tokens | minutes | text_loss | image_loss | draw_exact"
    )
    assert table[4].endswith("| 0.650 ± 0.071 |")
    assert table[4].startswith("| a | 2 of 2 |")
    assert table[5] == "| b | 1 of 2 | 1.000 | 1.000 | 1.000 | 1.000 | 0.500 | - |"
    assert table[-1] == "b-seed0 failed: ValueError: no"
    assert set(latest([a], records)) == {a.digest}
    hidden = study(SweepRun(name="a", shown=False), SweepRun(name="b", overrides="--from @a"), seeds=(0,))
    start, rest = jobs(hidden)
    table = write_table(hidden, [start, rest], [record(start), record(rest, image_loss=0.0)]).splitlines()
    assert table[4:] == ["| b | 1 of 1 | 1.000 | 1.000 | 1.000 | 1.000 |"], "no image loss where there was no image"


def test_slopes_are_fitted_for_each_seed() -> None:
    sweep = replace(TWO, slopes=("image_loss", "draw_exact"))
    made = jobs(sweep)
    big = {"parameters": 100 * 10**6}
    losses = [0.5, 0.5 / 100**0.2, 0.4, 0.4 / 100**0.3]  # the seeds' exponents are -0.2 and -0.3
    records = [
        record(job, image_loss=loss, **(big if job.run.name == "b" else {}))
        for job, loss in zip(made, losses, strict=True)
    ]
    said = write_table(sweep, made, records).splitlines()
    assert said[-2] == "image_loss: slope of its logarithm against that of compute -0.250 ± 0.071 (seeds: 2)"
    assert said[-1].startswith("draw_exact: no figure of that name yet; there are ")
    alike = [record(job, image_loss=0.5) for job in made]
    assert "of different compute" in write_table(sweep, made, alike).splitlines()[-2]


def test_totals_add_up_unequal_intervals() -> None:
    line = {"seconds": 2.0, "documents": 3.0, "padding": 0.5, "text_loss": 1.0, "image_loss": 2.0}
    lines = [{**line, "step": 10}, {**line, "step": 20, "text_loss": 5.0}, {**line, "step": 21, "text_loss": 2.0}]
    for line, peak in zip(lines, (1.0, 3.0, 2.0), strict=True):
        line["host_peak_gib"] = peak
    lines.insert(1, {"step": 10, "scores": {"draw_exact": 0.5}})  # type: ignore[dict-item]
    lines.append({"step": 21, "scores": {"draw_exact": 0.5}})  # type: ignore[dict-item]
    assert totals(lines, tokens=100) == {
        "steps": 21, "documents": 63, "tokens": 1050, "seconds": 42.0,
        "text_loss": pytest.approx(52 / 11), "image_loss": 2.0, "host_peak_gib": 3.0,
    }  # fmt: skip


def test_documents_come_over_again_in_another_order() -> None:
    config = ScenesData(size=32, objects=(1, 2), draw=0, describe=0, edit=1, question=0, story=0, documents=6)
    finite, endless = Scenes(config), Scenes(replace(config, documents=0))
    once = [finite.document(index) for index in range(12)]
    said = [str(document.segments[1]) for document in once]
    assert sorted(said[:6]) == sorted(said[6:]) == sorted(str(endless.document(i).segments[1]) for i in range(6))
    assert said[:6] != said[6:]
    assert all(isinstance(finite.example(index), Edit) for index in range(6))


def test_captions_alone_are_text_of_their_split() -> None:
    config = ScenesData(size=32, objects=(1, 2), draw=0, describe=0, edit=0, question=0, story=0, caption=1)
    scenes = Scenes(config)
    for index in range(5):
        example = scenes.example(index)
        assert isinstance(example, Story)
        assert example.text == scenes.drawing(index).caption
        assert not any(isinstance(segment, Image) for segment in scenes.document(index).segments)
    before = [Scenes(ScenesData()).kind(index) for index in range(50)]
    assert "caption" not in before
    assert json.dumps(before[:8]) == json.dumps([Scenes(ScenesData(caption=0.0)).kind(index) for index in range(8)])
