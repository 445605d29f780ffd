"""The cache of latents: the very stream it was made of, the same losses, the same files after a kill, one encoder."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from monoformer.autoencoder import LatentAutoencoder
from monoformer.cli.main import main
from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.data import FolderData, MixtureData, ScenesData, TextData, TokenizerConfig
from monoformer.config.run import RunConfig, load_config, save_config
from monoformer.config.sources import CacheData
from monoformer.config.vision import VisionConfig
from monoformer.data.build import build_source
from monoformer.data.cache import check_caches, read_record
from monoformer.data.encoding import encode
from monoformer.data.skipped import BadDocument
from monoformer.document import Document, Image
from monoformer.train.build import build_run
from monoformer.train.caching import cache_jobs, on_caches, shaped
from monoformer.train.loss import moments_of
from monoformer.train.survey import check_data
from monoformer.train.trainer import Trainer
from tests import latents, tiny

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SHARD = 8


def write_pictures(root: Path) -> None:
    """Pictures of two sizes, one of them torn, with two captions each."""
    root.mkdir()
    for number, pixels in enumerate(latents.pictures(10, size=(32, 32))):
        picture = Image(pixels=pixels).to_pil()
        (picture if number % 2 else picture.resize((48, 32))).save(root / f"{number}.png")
    (root / "3.png").write_bytes((root / "3.png").read_bytes()[:60])
    lines = [{"file_name": f"{number}.png", "text": [f"number {number}", "a blur"]} for number in range(10)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run on pictures, text and edits, on samples of latents; its pictures are mirrored at random."""
    root = tmp_path_factory.mktemp("cache")
    write_pictures(root / "pictures")
    (root / "book.txt").write_text("the red circle is left of a square\n\n" * 40)
    tiny.tokenizer().save(root / "tokenizer")
    sizes = ((32, 32), (32, 48))
    pictures = FolderData(root=str(root / "pictures"), shape="bucket", buckets=sizes, flip=True)
    scenes = ScenesData(size=32, draw=1, describe=1, edit=2, question=1)
    text = TextData(files=(str(root / "book.txt"),))
    made = tiny.run_config(
        root / "run",
        model=tiny.model_config(patch=1, down=4, channels=4, image_sizes=sizes, context=256),
        autoencoder=AutoencoderConfig(path=latents.save("kl4", root / "kl4"), posterior="sample"),
        data=MixtureData(sources=(pictures, text, scenes), weights=(2.0, 1.0, 2.0)),
        tokenizer=TokenizerConfig(path=str(root / "tokenizer")),
        train={"skip_limit": 1.0},
    )
    return shaped(replace(made, sequence=replace(made.sequence, row=256)))


@pytest.fixture(scope="module")
def cached(config: RunConfig) -> RunConfig:
    """The same run on caches."""
    out = Path(config.folder).with_name("caches")
    for job in cache_jobs(config, out, passes=4, documents=30, shard=SHARD):
        encode(job)
    return on_caches(config, out)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def documents_of(config: RunConfig, count: int) -> list[Document | BadDocument]:
    return list(islice(build_source(config.data, seed=config.seed), count))


def test_it_is_the_stream_that_was_encoded(config: RunConfig, cached: RunConfig) -> None:
    assert isinstance(cached.data, MixtureData)
    assert [type(source).__name__ for source in cached.data.sources] == ["CacheData", "TextData", "CacheData"]
    pairs = list(zip(documents_of(config, 60), documents_of(cached, 60), strict=True))
    images, bad = 0, 0
    for before, after in pairs:
        if isinstance(before, BadDocument):
            assert isinstance(after, BadDocument)
            assert (str(after), after.cause) == (str(before), before.cause)
            bad += 1
            continue
        assert isinstance(after, Document)
        for old, new in zip(before.segments, after.segments, strict=True):
            if not isinstance(old, Image):
                assert old == new
                continue
            images += 1
            assert isinstance(new, Image)
            assert (new.target, new.role, new.pixels.shape) == (old.target, old.role, old.pixels.shape)
            with pytest.raises(ValueError, match="holds no pixels"):
                new.to_pil()
    assert images > 30
    assert bad > 0


def test_training_on_it_has_the_losses_of_the_pixels(config: RunConfig, cached: RunConfig, tmp_path: Path) -> None:
    lines = []
    for name, run in (("pixels", config), ("cached", cached)):
        built = build_run(replace(run, folder=str(tmp_path / name)))
        tiny.randomize(built.parts.model)
        trainer = Trainer(built.parts)
        with built.parts.loader:
            batches = [next(built.parts.loader) for _ in range(6)]
        assert sum(batch.targets for batch in batches) > 3
        assert all((slots.moments is None) == (name == "pixels") for batch in batches for slots in batch.images)
        lines.append([trainer.train_step(batches[:3]), trainer.train_step(batches[3:])])
    for before, after in zip(*lines, strict=True):
        assert before["image_loss"] > 0.1
        for name, value in before.items():
            assert after[name] == pytest.approx(value, rel=1e-5), name


def test_samples_stay_random_and_the_mean_is_there_too(cached: RunConfig, tmp_path: Path) -> None:
    built = build_run(replace(cached, folder=str(tmp_path)))
    with built.parts.loader:
        batch = next(built.parts.loader)
    assert batch.targets
    mean = moments_of(batch.images[0], LatentAutoencoder(latents.network("kl4")))
    sample = moments_of(batch.images[0], built.parts.autoencoder)
    assert torch.equal(mean[0], sample[0])
    assert mean[1] is None
    assert sample[1] is not None
    assert float(sample[1].min()) > 0


def test_pictures_of_both_kinds_share_a_batch(config: RunConfig, cached: RunConfig, tmp_path: Path) -> None:
    assert isinstance(config.data, MixtureData)
    assert isinstance(cached.data, MixtureData)
    both = MixtureData(sources=(config.data.sources[0], cached.data.sources[2]), weights=(1.0, 1.0))
    built = build_run(replace(cached, data=both, folder=str(tmp_path)))
    with built.parts.loader:
        batches = [next(built.parts.loader) for _ in range(12)]
    both_kinds = [batch for batch in batches if len({slots.moments is None for slots in batch.images}) == 2]
    assert both_kinds
    assert Trainer(built.parts).train_step(both_kinds)["gradient_norm"] > 0


def test_killed_and_resumed_it_has_the_same_files(config: RunConfig, cached: RunConfig, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill_at(shard: int) -> None:
        looks = 0

        def tell(what: str, done: int, of: int) -> None:
            nonlocal looks
            looks += 1
            if looks > shard:
                raise KilledError

        encode(job, tell=tell)

    for job in cache_jobs(config, tmp_path, passes=4, documents=30, shard=SHARD):
        for shard in (0, 3, 6):
            with pytest.raises(KilledError):
                kill_at(shard)
            with pytest.raises(ValueError, match="not whole yet"):
                read_record(str(job.folder))
        encode(job)
    assert files_of(tmp_path) == files_of(Path(config.folder).with_name("caches"))
    other = cache_jobs(config, tmp_path, passes=5, documents=30, shard=SHARD)[0]
    with pytest.raises(ValueError, match="holds another cache"):
        encode(other)


def test_no_picture_is_encoded_twice_and_both_flips_are(cached: RunConfig) -> None:
    assert isinstance(cached.data, MixtureData)
    pictures = cached.data.sources[0]
    assert isinstance(pictures, CacheData)
    record = read_record(pictures.root)
    assert record.encoding.documents == 40
    assert 9 < record.pictures <= 18, "nine pictures can be read, each as it is and mirrored"
    assert record.sizes == ((32, 32), (32, 48))
    keys = [image.moments for document in documents_of(replace(cached, data=pictures), 40)
            if isinstance(document, Document) for image in document.images]  # fmt: skip
    assert len({bytes(key.numpy()) for key in keys if key is not None}) == record.pictures


def test_after_the_first_pass_it_is_shuffled_and_goes_on(cached: RunConfig) -> None:
    assert isinstance(cached.data, MixtureData)
    data = cached.data.sources[2]
    documents = documents_of(replace(cached, data=data, seed=5), 60)
    assert all(isinstance(document, Document) for document in documents)
    passes = [[repr(d.segments[-1]) for d in documents[a : a + 30] if isinstance(d, Document)] for a in (0, 30)]
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]


def test_another_autoencoder_is_refused_by_name(cached: RunConfig, tmp_path: Path) -> None:
    other = latents.save("kl4", tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"encoded by the autoencoder '.*kl4' \(weights .*but the run's is '.*other'"):
        build_run(replace(cached, autoencoder=AutoencoderConfig(path=other), folder=str(tmp_path / "run")))
    network = latents.network("kl4")
    with torch.no_grad():
        next(network.decoder.parameters()).add_(1.0)
    check_caches(cached.data, LatentAutoencoder(network), path="another decoder")
    network.register_to_config(scaling_factor=0.5)
    with pytest.raises(ValueError, match="scale"):
        check_caches(cached.data, LatentAutoencoder(network), path="scaled")
    with pytest.raises(ValueError, match="vision encoder"):
        replace(cached, vision=VisionConfig(path="clip"))
    with pytest.raises(ValueError, match="is no cache of latents"):
        build_source(CacheData(root=str(tmp_path)))


def test_the_data_check_reads_it(cached: RunConfig) -> None:
    surveys, _, _ = check_data(cached, count=8)
    assert "32x32" in dict(surveys[0].figures())["height x width"]
    assert "values from 0 to 255" not in dict(surveys[0].figures())


def test_the_command_writes_a_run(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(config.data, MixtureData)
    file, out = tmp_path / "config.json", tmp_path / "out"
    save_config(replace(config, data=config.data.sources[0]), file)
    main(["encode", "--config", str(file), "--out", str(out), "--passes", "1"])
    assert "pictures of 10 documents" in capsys.readouterr().out
    assert load_config(out / "run.json").data == CacheData(root=str(out))
    with pytest.raises(SystemExit):
        main(["encode", "--config", str(file)])
    assert "--out FOLDER" in capsys.readouterr().err


@pytest.fixture
def large(config: RunConfig, tmp_path: Path) -> list[str]:
    """The command that encodes 600 scenes in two processes, without its folder."""
    file = tmp_path / "config.json"
    save_config(replace(config, data=ScenesData(size=32)), file)
    return [sys.executable, "-m", "monoformer", "encode", "--config", str(file), "--documents", "3000", "--processes", "2", "--out"]  # noqa: E501  # fmt: skip


@pytest.mark.slow
def test_processes_killed_with_9_leave_nothing_wrong(large: list[str], tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    subprocess.run([*large, str(straight)], check=True, capture_output=True)
    for wanted in (1, 2, 4):
        process = subprocess.Popen([*large, str(broken)], stdout=subprocess.DEVNULL)
        while len(list(broken.glob("*.parquet"))) < wanted and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(2)  # its processes see that it is gone
    subprocess.run([*large, str(broken)], check=True, capture_output=True)
    for folder in (straight, broken):
        (folder / "run.json").unlink()
    assert files_of(straight) == files_of(broken)
