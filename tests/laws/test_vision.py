"""A vision encoder in training, in model folders and in use: frozen, never part of the state, and really looked by."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from monoformer.autoencoder import Pixels
from monoformer.batch import Layout
from monoformer.config.data import ScenesData, SequenceConfig
from monoformer.config.run import RunConfig, load_config
from monoformer.config.vision import VisionConfig
from monoformer.document import Document, Image, Text
from monoformer.generate.engine import Engine
from monoformer.generate.guidance import null_document
from monoformer.generate.session import Request
from monoformer.pipeline import Pipeline
from monoformer.presets import PRESETS
from monoformer.pretrained import load_pretrained, save_pretrained
from monoformer.train.build import build_run
from monoformer.train.saved import read_saved
from monoformer.train.trainer import Trainer
from monoformer.vision import build_vision
from tests import encoders, tiny

CONTEXT = tiny.image(Random(1), role="user", size=(8, 8))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return encoders.save("clip", tmp_path_factory.mktemp("vision") / "clip")


def scenes_config(folder: Path, path: str, **changes: Any) -> RunConfig:
    """Drawn scenes of 32x32 pixels, patches of 8."""
    model = tiny.model_config("token", patch=8, context=256, image_sizes=((32, 32),), **changes.pop("shape", {}))
    rows = SequenceConfig(row=256, window=12)
    parts = {"model": model, "sequence": rows, "data": ScenesData(size=32), "vision": VisionConfig(path=path)}
    return tiny.run_config(folder, **{**parts, **changes})


def test_context_passes_through_the_encoder_and_what_is_drawn_stays_patches() -> None:
    own = tiny.sequencer("vision")
    target = tiny.image(Random(2), target=True, role="assistant", size=(8, 8))
    document = Document((CONTEXT, Text("red", "user"), target, Text("of", "user"), Text("blue", "assistant")))
    layout = own.document(document)
    assert [(b.by_encoder, b.noised, b.grid) for b in layout.blocks] == [
        (True, False, (3, 3)), (False, True, (2, 2)), (False, False, (2, 2)),
    ]  # fmt: skip
    start = layout.blocks[0].start
    t = tiny.tokenizer()
    assert layout.ids[start - 1 : start + 10] == [t.boi, *[t.patch] * 9, t.eoi], "no time token"
    assert layout.positions[start : start + 10] == list(range(start, start + 10))
    assert layout.end[start : start + 9] == [start + 9] * 9, "two-way"
    odd = Image(pixels=torch.zeros((3, 7, 9), dtype=torch.uint8), role="user")
    assert own.prompt(Document((odd,))).blocks[0].grid == (3, 3), "any size is as many tokens"
    batch = tiny.in_rows([layout, own.document(Document((odd, Text("a", "assistant"))))], rows=1)
    assert [slots.pixels.shape[-2:] for slots in batch.vision] == [(7, 9), (8, 8)]
    assert batch.targets == 1


def test_a_run_takes_the_shape_of_its_encoder_and_leaves_it_alone(path: str, tmp_path: Path) -> None:
    built = build_run(scenes_config(tmp_path / "run", path))
    trainer = Trainer(built.parts)
    encoder = built.parts.vision
    assert encoder is not None
    assert (built.parts.config.model.vision_width, built.parts.config.model.vision_grid) == (16, (3, 3))
    before = {name: p.clone() for name, p in encoder.network.named_parameters()}
    learned = {name: p.detach().clone() for name, p in built.parts.model.vision.named_parameters()}  # type: ignore[union-attr]
    batch = next(built.parts.loader)
    built.parts.loader.close()
    assert batch.vision
    assert batch.targets
    assert not any(slots.noised.any() for slots in batch.vision)
    for _ in range(2):  # the head starts at zero, so the first step moves nothing behind it
        trainer.train_step([batch])
    for name, p in encoder.network.named_parameters():
        assert p.grad is None
        assert not p.requires_grad
        assert torch.equal(p, before[name])
    for name, p in built.parts.model.vision.named_parameters():  # type: ignore[union-attr]
        assert not torch.equal(p, learned[name]), name
    save_pretrained(tmp_path / "model", built.pretrained)
    names = set(load_file(tmp_path / "model" / "model.safetensors"))
    assert {name for name in names if "vision" in name} == {
        f"vision.{layer}.{kind}" for layer in ("input", "output") for kind in ("weight", "bias")
    }
    assert names == {name for name, _ in built.parts.model.named_parameters()}


def test_a_model_folder_stands_alone(path: str, tmp_path: Path) -> None:
    source = shutil.copytree(path, tmp_path / "source")
    built = build_run(scenes_config(tmp_path / "run", str(source)))
    tiny.randomize(built.parts.model)
    before = Pipeline(built.pretrained, slots=2)
    save_pretrained(tmp_path / "model", built.pretrained)
    pictures = [tiny.image(Random(seed), size=(32, 32)).to_pil() for seed in range(3)]
    expected = before.caption(pictures, max_tokens=12)
    assert len(set(expected)) > 1
    shutil.rmtree(source)
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    after = Pipeline.from_pretrained(moved, device="cpu", dtype=torch.float32, slots=2)
    assert after.caption(pictures, max_tokens=12) == expected
    assert after.pretrained.vision.path == str(moved / "vision")
    config = json.loads((moved / "config.json").read_text())
    assert config["vision"]["path"] == "vision"
    edited = after.edit(pictures[0], "red", steps=2)[0]
    assert edited.size == (32, 32)


def test_a_model_that_could_not_see_learns_to_and_then_keeps_its_eyes(path: str, tmp_path: Path) -> None:
    blind = build_run(scenes_config(tmp_path / "blind", ""))
    save_pretrained(tmp_path / "model", blind.pretrained)
    sees = build_run(scenes_config(tmp_path / "sees", path, start=str(tmp_path / "model")))
    assert "projection of the vision encoder's features is new" in sees.news
    old, new = (dict(parts.parts.model.named_parameters()) for parts in (blind, sees))
    assert {name for name in new if name not in old} == {name for name in new if name.startswith("vision.")}
    assert all(torch.equal(new[name], old[name]) for name in old)
    again = build_run(scenes_config(tmp_path / "again", path, start=str(tmp_path / "model")))
    assert all(torch.equal(p, new[name]) for name, p in again.parts.model.named_parameters()), "by the seed alone"
    save_pretrained(tmp_path / "seeing", sees.pretrained)
    kept = build_run(scenes_config(tmp_path / "kept", "", start=str(tmp_path / "seeing")))
    assert kept.parts.config.vision.path == str(tmp_path / "seeing" / "vision")
    assert torch.equal(kept.parts.model.vision.input.weight, new["vision.input.weight"])  # type: ignore[union-attr]


def test_eyes_and_experts_may_come_in_one_run(path: str, tmp_path: Path) -> None:
    """Both are learned, and the folder and the run's checkpoint hold both."""
    save_pretrained(tmp_path / "model", build_run(scenes_config(tmp_path / "blind", "")).pretrained)
    config = scenes_config(tmp_path / "run", path, start=str(tmp_path / "model"), shape={"experts": "modality"})
    built = build_run(config)
    network = built.parts.model
    assert (built.parts.config.model.experts, network.config.experts) == ("modality", "modality")
    before = {name: p.clone() for name, p in network.named_parameters() if ".image." in name or "vision." in name}
    assert before
    assert Trainer(built.parts).run()
    after = dict(network.named_parameters())
    assert not [name for name, p in before.items() if p.ndim > 1 and torch.equal(p, after[name])]
    save_pretrained(tmp_path / "trained", built.pretrained)
    _, saved, weights = read_saved(load_config(tmp_path / "run" / "config.json"))
    assert load_pretrained(tmp_path / "trained").model.config == saved.model.config == network.config
    assert weights.keys() == network.state_dict().keys()


def test_the_assistants_picture_is_patches_whoever_hands_it_back() -> None:
    made = tiny.pretrained("vision")
    server = Engine(made, Pixels(), vision=tiny.encoder(), slots=2)
    saved = Image(pixels=CONTEXT.pixels, role="assistant")  # from a file, which does not say who drew it
    history = Document((Text("red", "user"), saved, CONTEXT, Text("what", "user")))
    server.add(Request(document=history, want="text", settings=made.generate))
    session = server.waiting[0]
    assert [block.by_encoder for block in session.layouts[0].blocks] == [False, True]
    null = server.sequencer.prompt(null_document(session.so_far()), opening="image")
    assert [block.by_encoder for block in null.blocks] == [False, True]


def test_describing_is_learned_from_the_picture(tmp_path: Path) -> None:
    """Two pictures, two captions; the text alone says nothing of which is right."""
    pictures = [tiny.image(Random(seed), role="user", size=(8, 8)) for seed in (1, 2)]
    trainer, own = tiny.trainer(tiny.run_config(tmp_path, mode="vision")), tiny.sequencer("vision")

    def described(picture: int, word: str) -> Layout:
        return own.document(Document((pictures[picture], Text(word, "assistant"))))

    def loss(picture: int, word: str) -> float:
        with torch.no_grad():
            return float(trainer.losses(tiny.in_rows([described(picture, word)], rows=1))[0])

    batch = tiny.in_rows([described(0, "red"), described(1, "blue")], rows=1)
    for _ in range(30):
        trainer.train_step([batch])
    right, wrong = loss(0, "red") + loss(1, "blue"), loss(0, "blue") + loss(1, "red")
    assert right < 0.2
    assert wrong > 4


def test_the_understanding_preset_reads_with_clip() -> None:
    config = PRESETS["monoformer-understanding"]()
    assert config.vision.path == "openai/clip-vit-large-patch14"
    assert (config.model.vision_width, config.model.vision_grid) == (1024, (224 // 14, 224 // 14))


# --- what is refused ---


def edit(folder: Path, name: str, **changes: Any) -> None:
    fields = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


SPOILT: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: edit(f, "config.json", model_type="vit_mae"), "model_type is 'vit_mae'; known are clip, "),
    (lambda f: edit(f, "config.json", model_type="llama"), "model_type is 'llama'"),
    (lambda f: (f / "config.json").unlink(), r"it has no config\.json"),
    (lambda f: (f / "config.json").write_text("{"), r"its config\.json is damaged"),
    (lambda f: (f / "preprocessor_config.json").unlink(), r"it has no preprocessor_config\.json"),
    (lambda f: edit(f, "preprocessor_config.json", image_mean=None), "lacks 'image_mean'"),
    (lambda f: edit(f, "preprocessor_config.json", image_mean=[0.5]), "not three of each"),
    (lambda f: edit(f, "preprocessor_config.json", resample=0), r"resample = 0; known are 2 \(bilinear\)"),
    (lambda f: edit(f, "preprocessor_config.json", do_rescale=False), "do_rescale = False"),
    (
        lambda f: edit(f, "preprocessor_config.json", do_center_crop=False, size={"shortest_edge": 12}),
        "pictures of several sizes",
    ),
    (lambda f: edit(f, "preprocessor_config.json", crop_size=20), "cuts 20x20 pixels out of 12x12"),
    (lambda f: edit(f, "preprocessor_config.json", size=24, crop_size=24), "makes pictures of 24x24, but.*12x12"),
    (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    (lambda f: (f / "model.safetensors").write_bytes(b"12345678"), "header"),
    (lambda f: edit(f, "config.json", vision_config=encoders.SHAPE | {"num_hidden_layers": 3}), "its weights lack "),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_what_is_no_vision_encoder_is_refused_in_one_line(
    spoil: Callable[[Path], object], message: str, path: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(path, tmp_path / "clip")
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        build_vision(VisionConfig(path=str(folder)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{folder} cannot be used as vision encoder: ")


def test_settings_that_contradict_each_other_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vision\.path is 'mine', neither a folder here nor a hub name"):
        build_vision(VisionConfig(path="mine"))
    with pytest.raises(ValueError, match=r"gives \(3, 3\) features of 16; give its own with --vision\.path"):
        build_run(scenes_config(tmp_path, path, shape={"vision_width": 8, "vision_grid": (3, 3)}))
    with pytest.raises(ValueError, match="are all 0 or all above it"):
        tiny.model_config(vision_width=8)
    with pytest.raises(ValueError, match=r"is a vision encoder's; give --vision\.path"):
        scenes_config(tmp_path, "", shape={"vision_width": 8, "vision_grid": (3, 3)})
    limited = SequenceConfig(row=256, context="noised", noise_limit=0.5)
    with pytest.raises(ValueError, match="which a vision encoder never reads; set it to 0"):
        scenes_config(tmp_path, path, sequence=limited)
    with pytest.raises(ValueError, match="but there is no vision encoder"):
        Pipeline(tiny.pretrained("vision"))


def test_no_encoder_leaves_nothing_in_a_model_folder(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "model", tiny.pretrained())
    assert not (tmp_path / "model" / "vision").exists()
    assert load_pretrained(tmp_path / "model").vision == VisionConfig()
