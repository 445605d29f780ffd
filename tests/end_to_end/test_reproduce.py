"""The scripts of reproduce/ say the presets' settings, and go their whole way at a tiny size, on data as given out."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as PILImage
from transformers import LlamaConfig

from monoformer.cli.training import read_config
from monoformer.config.sweep import load_sweep
from monoformer.evaluate.tasks import TASKS
from monoformer.presets import PRESETS
from monoformer.sweep import plan
from tests import latents
from tests.contracts.test_evaluate import judge
from tests.contracts.test_language_scores import write_tasks
from tests.end_to_end.test_language_model import SHAPE, language_model
from tests.pages import ROOT

OFFICIAL = ROOT.parent / "shared" / "fixtures" / "official-tiny"
needs_bash = pytest.mark.skipif(not shutil.which("bash") or sys.platform == "win32", reason="needs bash")


def script(name: str, *options: str, **settings: object) -> str:
    """What a script prints; it must succeed."""
    given = {name: str(value) for name, value in settings.items()} | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", str(ROOT / "reproduce" / name), *options],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def autoencoder(folder: Path) -> Path:
    """Stable Diffusion's layout, tiny: 4 channels, 8 times smaller."""
    import diffusers

    shape = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    latents.randomize(diffusers.AutoencoderKL(**shape, **blocks), 0).save_pretrained(folder)
    return folder


def picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", (64, 64), (level, 255 - level, 90)).save(path)


def test_the_settings_of_tinyllama_are_those_of_the_preset() -> None:
    text = (ROOT / "reproduce" / "tinyllama.sh").read_text(encoding="utf-8")
    block = re.search(r"^SETTINGS=\(\n(.*?)^\)", text, flags=re.DOTALL | re.MULTILINE)
    assert block
    preset = PRESETS["monoformer-t2i"]()
    words = [word.replace("$AUTOENCODER", preset.autoencoder.path) for word in shlex.split(block[1], comments=True)]
    assert sum(word.startswith("--") for word in words) > 20
    assert read_config(["monoformer-t2i", *words]) == preset
    changed = read_config(["monoformer-t2i", *words, "--train.clip", "1"])  # so the comparison can fail
    assert changed == replace(preset, train=replace(preset.train, clip=1.0)) != preset


@pytest.mark.parametrize("file", sorted((ROOT / "reproduce").glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_can_be_planned(file: Path, tmp_path: Path) -> None:
    study = load_sweep(file)
    jobs = plan(study, tmp_path, read=read_config)
    assert len(jobs) == sum(len(study.seeds_of(run)) for run in study.runs)
    assert len({job.digest for job in jobs}) == len(jobs), "no run is another one under another name"
    page = (ROOT / "reproduce" / "README.md").read_text(encoding="utf-8")
    (said,) = re.findall(rf"^\| {re.escape(file.name)} \|.*\| (\d+) \|$", page, flags=re.MULTILINE)
    assert int(said) == len(jobs)


def test_pixels_and_latents_learn_the_same_documents(tmp_path: Path) -> None:
    jobs = plan(load_sweep(ROOT / "reproduce" / "latent.toml"), tmp_path, read=read_config)
    data = {job.run.name: job.config.data for job in jobs}
    drawing = {job.run.name: job.config for job in jobs if not job.run.name.startswith("language-model")}
    assert drawing.keys() == {"pixels", "latent", "latent-token", "latent-encoding"}
    assert all(config.data == data["latent"] != data["language-model"] for config in drawing.values())
    assert len({(config.train.rows, config.sequence) for config in drawing.values()}) == 1
    times = [job.config.model.time for job in jobs if job.run.name.startswith("language-model")]
    assert times == ["adaln", "token"], "what starts from them knows the time as they do"


@pytest.mark.slow
@needs_bash
@pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"the official checkpoint is not here: no folder {OFFICIAL}")
def test_imagenet256_from_an_official_checkpoint_to_its_scores(tmp_path: Path) -> None:
    synsets = ("n01440764", "n01443537", "n01484850")  # the official file's first three
    labels = {name: {"label": f"{5 + number} 17", "second_labels": []} for number, name in enumerate(synsets)}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    for number in range(4):
        picture(tmp_path / "real" / f"{number}.png", 60 * number)
    settings = {
        "OFFICIAL": OFFICIAL,
        "AUTOENCODER": autoencoder(tmp_path / "vae"),
        "LABELS": tmp_path / "labels.json",
        "REFERENCE": tmp_path / "real",
        "EXTRACTOR": judge(tmp_path),
        **{"COUNT": 10, "STEPS": 2, "BATCH": 4, "OUT": tmp_path / "out"},
    }
    said = script("imagenet256.sh", **settings)
    assert "judge_frechet_distance" in said
    assert "inception_fid" not in said
    (suite,) = json.loads((tmp_path / "out/scores/scores.json").read_text())["suites"]
    assert (suite["generate"]["sampler"], suite["generate"]["guided_channels"]) == ("ddpm", 3)
    assert suite["generate"]["guidance"] == 1.5
    assert (tmp_path / "out/prompts.txt").read_text().splitlines()[1] == "Please generate an image of 6 17."
    assert "finished before" in script("imagenet256.sh", **settings), "it goes on where it was"


@pytest.mark.slow
@needs_bash
def test_flickr8k_from_parquet_to_samples(tmp_path: Path) -> None:
    import datasets

    for name in ("train", "test"):
        table = {
            "image": [PILImage.new("RGB", (96, 96), (n % 256, 80, 200 - n % 200)) for n in range(260)],
            "captions": [[f"a dog {n}", f"the dog  {n} runs"] for n in range(260)],
        }
        cast = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
        cast.to_parquet(tmp_path / f"{name}.parquet")
    tiny = [
        *("--train.steps=2", "--train.rows=2", "--train.warmup=1", "--sequence.window=16", "--train.sample-every=0"),
        *(
            "--train.checkpoint-every=2",
            "--generate.steps=2",
            "--model.width=32",
            "--model.layers=1",
            "--model.heads=2",
        ),
        *("--model.kv-heads=1", "--model.mlp-width=48"),
    ]
    files = [str(tmp_path / f"{name}.parquet") for name in ("train", "test")]
    script("flickr8k.sh", *files, *tiny, OUT=tmp_path / "out", COUNT=100)
    (suite,) = json.loads((tmp_path / "out/scores/scores.json").read_text())["suites"]
    assert [figure["name"] for figure in suite["figures"]] == ["caption_found_among_100"]
    assert (tmp_path / "out/prompts.txt").read_text().splitlines()[1] == "a dog 1"
    with PILImage.open(tmp_path / "out/drawn-11.png") as drawn:
        assert drawn.size == (96, 96)


@pytest.mark.slow
@needs_bash
def test_tinyllama_from_a_language_model_to_a_picture(tmp_path: Path) -> None:
    lines = []
    for number in range(8):
        picture(tmp_path / "journeydb/images/000" / f"{number}.jpg", 30 * number)
        lines.append(
            json.dumps({"img_path": f"000/{number}.jpg", "prompt": "a red cat", "Task2": {"Caption": "a cat"}})
        )
    lines += ["{torn", json.dumps({"img_path": "000/none.jpg", "prompt": "gone"})]
    (tmp_path / "journeydb/train_anno.jsonl").write_text("\n".join(lines))
    talks = [json.dumps({"id": str(n), "data": [f"What is {n}?", "A number."]}) for n in range(100)]
    (tmp_path / "ultrachat.jsonl").write_text("\n".join(talks))
    llama = language_model(tmp_path / "llama", LlamaConfig(**SHAPE))
    tiny = [
        *("--train.steps=2", "--train.rows=2", "--sequence.row=128", "--sequence.window=32", "--generate.steps=2"),
        *("--train.checkpoint-every=2", "--data.sources.0.size=64", "--train.skip-limit=1", "--model.context=512"),
        *("--model.image-sizes", "64", "64"),
    ]
    said = script(
        "tinyllama.sh",
        *tiny,
        JOURNEYDB=tmp_path / "journeydb",
        ULTRACHAT=tmp_path / "ultrachat.jsonl",
        LLAMA=llama,
        AUTOENCODER=autoencoder(tmp_path / "vae"),
        TASKS=write_tasks(tmp_path / "tasks"),
        OUT=tmp_path / "out",
    )
    assert "8 pictures; 2 lines left out" in said
    with PILImage.open(tmp_path / "out/drawn.png") as drawn:
        assert drawn.size == (64, 64)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["train"]["text_weight"] == 0.01
    (suite,) = json.loads((tmp_path / "out/scores/scores.json").read_text())["suites"]
    figures = {figure["name"]: figure["value"] for figure in suite["figures"]}
    for task in TASKS:
        before, after, lost = (figures[f"{when}_{task}_accuracy"] for when in ("before", "after", "difference"))
        assert lost == pytest.approx(after - before, abs=1e-6), task
    assert suite["settings"]["before"] == str(llama)


@pytest.mark.slow
@needs_bash
def test_shakespeare_to_its_loss(tmp_path: Path) -> None:
    lines = (f"Citizen {number}:\nBefore we proceed any further, hear me speak.\n\n" for number in range(200))
    (tmp_path / "text.txt").write_text("".join(lines))
    printed = script(
        "shakespeare.sh", str(tmp_path / "text.txt"), "--train.steps", "40", "--train.warmup", "1", OUT=tmp_path / "out"
    )
    found = re.search(r"loss a character: (.*) nats", printed)
    assert found, printed
    assert 0 < float(found[1]) < 3  # 5.6 before training


@pytest.mark.slow
@needs_bash
def test_baselines_to_their_table(tmp_path: Path) -> None:
    tiny = [
        *("--model.width=96", "--model.heads=2", "--model.kv-heads=1", "--model.mlp-width=64", "--model.layers=2"),
        *("--train.steps=2", "--train.rows=2", "--train.warmup=1", "--sequence.window=16", "--generate.steps=2"),
        *(f"--autoencoder.path={ROOT / 'models' / 'autoencoder-mini'}", "--count=2"),
    ]
    settings = {"TASKS": "scenes", "SEEDS": 0, "NETWORKS": "monoformer dit", "OUT": tmp_path}
    said = script("baselines.sh", *tiny, **settings)
    for network in ("monoformer", "dit"):
        assert f"| scenes-latent-{network} | 1 of 1 |" in said
    assert (tmp_path / "scenes" / "study.png").is_file()
