"""Pictures scored by the features of an extractor: files of every form, the memory of references, known drawers."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from monoformer.config.data import FolderData, ScenesData, TextData
from monoformer.config.evaluate import ImageScores
from monoformer.data.scenes import Scenes, draw
from monoformer.evaluate.build import build_evaluator
from monoformer.evaluate.extractors import load_extractor
from monoformer.evaluate.frechet import frechet_distance
from monoformer.evaluate.journal import Journal
from monoformer.evaluate.references import Pictures, load_reference, open_drawn, open_reference
from monoformer.pipeline import Pipeline
from tests import tiny

CPU = torch.device("cpu")
DATA = ScenesData(size=32, objects=(1, 2))


class Means(nn.Module):
    """Mean colours of the four quarters, and of their squares; a class by the brightest of three."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels.float() / 255
        x = nn.functional.adaptive_avg_pool2d(torch.cat([x, x * x], dim=1), [2, 2]).flatten(1)
        return x, 10 * x[:, :3]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("extractor") / "means.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripts are an old form
        torch.jit.save(torch.jit.script(Means()), str(path))
    return str(path)


def scores(script: str, folder: Path, **changes: object) -> ImageScores:
    options: dict[str, object] = {"extractor": script, "trust": True, "count": 16, "splits": 2, "neighbours": 3}
    return ImageScores(cache=str(folder / "cache"), **{**options, **changes})  # type: ignore[arg-type]


def real(count: int, split: str = "test") -> Tensor:
    scenes = Scenes(DATA, split=split)  # type: ignore[arg-type]
    return torch.stack([draw(scenes.drawing(i).scene, 32) for i in range(count)])


def save(path: Path, pixels: Tensor) -> str:
    np.savez(path, arr_0=pixels.permute(0, 2, 3, 1).numpy())
    return str(path)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.pretrained(image_sizes=((32, 32),)), slots=8)


def test_held_out_pictures_of_several_sizes_get_the_one_that_is_drawn(
    script: str, tmp_path: Path, pipeline: Pipeline
) -> None:
    for number in range(250):
        size = (32, 32) if number % 2 else (64, 32)
        pixels = np.full((*size, 3), number, dtype=np.uint8)
        PILImage.fromarray(pixels).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a shade of grey")
    data = FolderData(root=str(tmp_path), shape="bucket", buckets=((32, 32), (64, 32)))
    config = scores(script, tmp_path / "own", count=6, neighbours=2)
    found = dict(build_evaluator(config, pipeline, data=data).run())
    assert found["means_frechet_distance"] > 0


def test_pictures_of_a_model_against_its_held_out_documents(script: str, tmp_path: Path, pipeline: Pipeline) -> None:
    watched: list[int] = []
    journal = Journal(tmp_path / "begun", watch=watched.append)
    config = scores(script, tmp_path)
    out = tmp_path / "samples.npz"
    evaluator = build_evaluator(config, pipeline, data=DATA, journal=journal, batch=6, samples=out)
    found = dict(evaluator.run())
    assert list(found) == [
        f"means_{name}" for name in ("frechet_distance", "class_score", "class_score_deviation", "precision", "recall")
    ]
    assert sum(watched) == evaluator.total == 32
    drawn = np.load(out)["arr_0"]
    assert (drawn.shape, drawn.dtype) == ((16, 32, 32, 3), np.uint8)
    again = build_evaluator(replace(config, drawn=str(out)), pipeline, data=DATA)
    assert dict(again.run()) == found, "ADM's form out and in"
    other = build_evaluator(replace(config, seed=1), pipeline, data=DATA)
    assert dict(other.run())["means_frechet_distance"] != found["means_frechet_distance"]


def test_known_drawers(script: str, tmp_path: Path, pipeline: Pipeline) -> None:
    pixels = real(96)

    def scored(drawn: Tensor) -> dict[str, float]:
        reference = save(tmp_path / "real.npz", pixels[:48])
        config = scores(script, tmp_path, drawn=save(tmp_path / "drawn.npz", drawn), reference=reference)
        return dict(build_evaluator(config, pipeline, data=None).run())

    same, perfect = scored(pixels[:48]), scored(pixels[48:])
    memoriser, noise = (
        scored(pixels[:1].expand(48, -1, -1, -1)),
        scored(torch.randint(0, 256, (48, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)),
    )
    assert same["means_frechet_distance"] == pytest.approx(0, abs=1e-8)
    assert (same["means_precision"], same["means_recall"]) == (1, 1)
    assert perfect["means_frechet_distance"] < min(m["means_frechet_distance"] for m in (memoriser, noise))
    assert perfect["means_precision"] > 0.6
    assert perfect["means_recall"] > 0.6
    assert (memoriser["means_precision"], memoriser["means_recall"]) == (1, pytest.approx(1 / 48))
    assert noise["means_recall"] == 0


def test_references_of_every_form_agree_and_are_remembered(script: str, tmp_path: Path) -> None:
    pixels = real(9)
    for number, picture in enumerate(pixels):
        PILImage.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    extractor = load_extractor(scores(script, tmp_path), device=CPU)
    cache = tmp_path / "cache"
    listed = load_reference(Pictures.listed(list(pixels)), extractor, cache=cache)
    (kept,) = cache.iterdir()
    assert kept.name.startswith("means-")
    stamp = kept.stat().st_mtime_ns
    folder = load_reference(open_reference(str(tmp_path), size=(32, 32)), extractor, cache=cache)
    arrays = load_reference(open_reference(save(tmp_path / "real.npz", pixels), size=(32, 32)), extractor, cache=cache)
    assert [*cache.iterdir()] == [kept]
    assert kept.stat().st_mtime_ns == stamp, "the same pictures are read by the extractor once"
    low = open_reference(str(tmp_path), size=(16, 32))
    assert isinstance(low, Pictures)
    assert low.picture(0).shape == (3, 16, 32)
    known = load_reference(open_reference(str(kept), size=(32, 32)), extractor, cache=cache)
    for other in (folder, arrays, known):
        torch.testing.assert_close(other.statistics.covariance, listed.statistics.covariance)
    assert known.features is None
    features = extractor.features(pixels)[0]
    assert listed.features is not None
    torch.testing.assert_close(listed.features, features)
    load_reference(Pictures.listed(list(pixels[1:])), extractor, cache=cache)
    assert len([*cache.iterdir()]) == 2


def test_statistics_alone_give_a_distance_alone(script: str, tmp_path: Path, pipeline: Pipeline) -> None:
    pixels = real(20)
    extractor = load_extractor(scores(script, tmp_path), device=CPU)
    features = extractor.features(pixels)[0].double().numpy()
    np.savez(tmp_path / "statistics.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    config = scores(
        script,
        tmp_path,
        reference=str(tmp_path / "statistics.npz"),
        drawn=save(tmp_path / "drawn.npz", real(20, "train")),
    )
    found = dict(build_evaluator(config, pipeline, data=None).run())
    exact = frechet_distance(extractor.features(pixels)[0], extractor.features(real(20, "train"))[0])
    assert found["means_frechet_distance"] == pytest.approx(exact, rel=1e-6)
    assert "means_precision" not in found


def test_adms_own_files_give_the_distance_to_their_statistics_and_recall_of_their_pictures(
    script: str, tmp_path: Path
) -> None:
    everything, some = real(20), real(20)[:9]
    extractor = load_extractor(scores(script, tmp_path), device=CPU)
    features = extractor.features(everything)[0].double().numpy()
    pictures = some.permute(0, 2, 3, 1).numpy()
    statistics_of_all = {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)}
    np.savez(tmp_path / "adm.npz", arr_0=pictures, **statistics_of_all, mu_s=np.zeros(3), sigma_s=np.eye(3))
    opened = open_reference(str(tmp_path / "adm.npz"), size=(32, 32))
    as_inception = replace(extractor, is_inception=True)
    found = load_reference(opened, as_inception, cache=tmp_path / "cache")
    torch.testing.assert_close(found.statistics.mean, torch.from_numpy(features.mean(0)))
    torch.testing.assert_close(found.features, extractor.features(some)[0])
    other = load_reference(opened, extractor, cache=tmp_path / "cache")
    expected = extractor.features(some)[0].double().mean(0)
    torch.testing.assert_close(other.statistics.mean, expected, msg="the file's statistics are of Inception alone")


def test_prompts_from_a_file_are_used_in_turn(script: str, tmp_path: Path, pipeline: Pipeline) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue ring\n")
    config = scores(script, tmp_path, prompts=str(tmp_path / "prompts.txt"), count=5, splits=1)
    config = replace(config, reference=save(tmp_path / "real.npz", real(9)))
    out = tmp_path / "samples.npz"
    dict(build_evaluator(config, pipeline, data=None, samples=out).run())
    expected = pipeline.generate_images(["a red circle", "a blue ring"] * 2 + ["a red circle"], seed=[0, 1, 2, 3, 4])
    for made, picture in zip(np.load(out)["arr_0"], expected, strict=True):
        assert np.abs(made.astype(int) - np.asarray(picture)).max() <= 1


def test_what_cannot_be_used_is_refused(script: str, tmp_path: Path, pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match=r"holds a program; if you trust it, add --images\.trust"):
        load_extractor(ImageScores(extractor=script), device=CPU)
    (tmp_path / "a.pt2").write_bytes(b"")
    with pytest.raises(ValueError, match="read by unpickling; give a TorchScript file"):
        load_extractor(ImageScores(extractor=str(tmp_path / "a.pt2"), trust=True), device=CPU)
    (tmp_path / "a.pt").write_bytes(b"no script")
    with pytest.raises(ValueError, match="is no TorchScript file"):
        load_extractor(ImageScores(extractor=str(tmp_path / "a.pt"), trust=True), device=CPU)
    with pytest.raises(ValueError, match="neither 'inception' nor a file"):
        load_extractor(ImageScores(extractor="inceptoin"), device=CPU)
    with pytest.raises(ValueError, match="no file of Inception weights"):
        load_extractor(ImageScores(weights="none.pth"), device=CPU)
    with pytest.raises(ValueError, match=r"by unpickling; if you trust that file, add --images\.trust"):
        load_extractor(ImageScores(weights=script), device=CPU)
    np.savez(tmp_path / "bad.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="must hold arr_0, or mu and sigma"):
        open_reference(str(tmp_path / "bad.npz"), size=(32, 32))
    with pytest.raises(ValueError, match="must hold pictures as arr_0"):
        open_drawn(str(tmp_path / "bad.npz"))
    (tmp_path / "half.npz").write_bytes((tmp_path / "bad.npz").read_bytes()[:60])
    for name in ("none.npz", "half.npz"):
        with pytest.raises(ValueError, match=f"{name} is neither a folder of pictures nor"):
            open_reference(str(tmp_path / name), size=(32, 32))
    with pytest.raises(ValueError, match="is not known; name prompts and a reference"):
        build_evaluator(scores(script, tmp_path), pipeline, data=None)
    (tmp_path / "text.txt").write_text("words " * 40)
    with pytest.raises(ValueError, match="draw too few pictures from text"):
        build_evaluator(scores(script, tmp_path), pipeline, data=TextData(files=(str(tmp_path / "text.txt"),)))
    with pytest.raises(ValueError, match="weights are Inception's"):
        ImageScores(extractor=script, weights="a")
    with pytest.raises(ValueError, match="nothing is drawn where drawn pictures are given"):
        ImageScores(drawn="a", prompts="b")
