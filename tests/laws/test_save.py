"""Model folders: what is loaded is what was saved, bit for bit; anything else is a ValueError that says which file."""

import json
import os
import pickle
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from monoformer.config.data import ScenesData, SequenceConfig
from monoformer.config.diffusion import DDPMConfig, FlowConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.run import save_config
from monoformer.document import Document, Text
from monoformer.files import whole_folder
from monoformer.pipeline import Pipeline
from monoformer.presets import PRESETS
from monoformer.pretrained import Pretrained, find_folder, load_pretrained, save_pretrained
from monoformer.train.build import build_run
from tests import tiny


def save(folder: Path, mode: str = "adaln", **changes: Any) -> Pretrained:
    made = tiny.pretrained(mode, **changes)
    save_pretrained(folder, made, card="# tiny\n")
    return made


def assert_same(first: Pretrained, second: Pretrained) -> None:
    assert first.model.config == second.model.config
    assert (first.diffusion, first.generate) == (second.diffusion, second.generate)
    one, two = first.model.state_dict(), second.model.state_dict()
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
        assert one[name].dtype == two[name].dtype


@pytest.mark.parametrize("mode", tiny.MODES)
def test_what_is_loaded_is_what_was_saved(mode: str, tmp_path: Path) -> None:
    made = save(tmp_path / "model", mode)
    loaded = load_pretrained(tmp_path / "model")
    assert_same(made, loaded)
    text = "</s> red of <boi>"
    assert loaded.tokenizer.encode(text) == made.tokenizer.encode(text)
    assert loaded.tokenizer.special == made.tokenizer.special
    document = Document(
        (Text("what", "user"), tiny.image(Random(0), target=True, role="assistant"), Text("a", "assistant"))
    )
    layout, again = made.sequencer().document(document), loaded.sequencer().document(document)
    assert (layout.ids, layout.labels, layout.end) == (again.ids, again.labels, again.end)
    batch = tiny.in_rows([layout], rows=1)
    assert torch.equal(tiny.hidden_of(loaded.model, batch), tiny.hidden_of(made.model, batch))
    assert not loaded.model.training


@pytest.mark.parametrize("diffusion", [FlowConfig(prediction="velocity", time_mean=0.1), DDPMConfig(betas="cosine")])
def test_the_folder_says_how_to_denoise(diffusion: FlowConfig | DDPMConfig, tmp_path: Path) -> None:
    made = replace(tiny.pretrained(), diffusion=diffusion)
    save_pretrained(tmp_path / "model", made)
    assert load_pretrained(tmp_path / "model").diffusion == diffusion


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no such permissions")
def test_whoever_may_read_the_folder_may_read_its_files(tmp_path: Path) -> None:
    save(tmp_path / "model", "add")
    expected = (tmp_path / "model").stat().st_mode & 0o666
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {expected}
    with whole_folder(tmp_path / "parts") as temporary:  # an autoencoder's folder inside: it can be entered
        (temporary / "inner").mkdir()
        (temporary / "inner" / "weights").write_text("w")
        (temporary / "inner" / "weights").chmod(0o600)
    parts = tmp_path / "parts"
    assert (parts / "inner").stat().st_mode & 0o777 == parts.stat().st_mode & 0o777
    assert (parts / "inner" / "weights").stat().st_mode & 0o777 == parts.stat().st_mode & 0o666


@pytest.mark.parametrize("exact", [True, False])
def test_weights_that_bf16_holds_exactly_are_written_in_it(exact: bool, tmp_path: Path) -> None:
    made = tiny.pretrained()
    if exact:
        made.model.to(torch.bfloat16).float()
    save_pretrained(tmp_path / "model", made)
    loaded = load_pretrained(tmp_path / "model", dtype=None)
    assert loaded.model.tokens.weight.dtype == (torch.bfloat16 if exact else torch.float32)
    assert torch.equal(loaded.model.tokens.weight.float(), made.model.tokens.weight)


def test_a_file_in_the_place_of_the_folder_and_a_hub_out_of_reach_are_value_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(tiny.pretrained())
    (tmp_path / "model").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        pipeline.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"'me/mine' cannot be put on the hub at http://127.0.0.1:9 .*auth login"):
        pipeline.push_to_hub("me/mine")
    with pytest.raises(ValueError, match="0 x 3 pixels"):
        pipeline.caption(PILImage.new("RGB", (0, 3)))


def test_tied_weights_are_saved_once_and_stay_one_parameter(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save(tmp_path / "model", "add")
    assert "text_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    model = load_pretrained(tmp_path / "model").model
    assert model.text_head.weight is model.tokens.weight, "or fine-tuning would train two"


def test_averaged_weights_replace_the_models_own(tmp_path: Path) -> None:
    for mode in ("adaln", "add"):
        made = tiny.pretrained(mode)
        weights = {name: 2 * p.detach() for name, p in made.model.named_parameters()}  # as an EMA names them
        save_pretrained(tmp_path / mode, made, weights=weights)
        loaded = load_pretrained(tmp_path / mode).model
        for name, p in loaded.named_parameters():
            assert torch.equal(p, weights[name]), name


def test_weights_in_several_files_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monoformer.pretrained.weights.SHARD_SIZE", "60KB")
    made = save(tmp_path / "model")
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert_same(made, load_pretrained(tmp_path / "model"))
    shards[1].unlink()
    with pytest.raises(ValueError, match=shards[1].name):
        load_pretrained(tmp_path / "model")


def test_loads_in_bf16(tmp_path: Path) -> None:
    made = save(tmp_path / "model")
    loaded = load_pretrained(tmp_path / "model", dtype=torch.bfloat16).model
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, made.model.state_dict()[name].bfloat16()), name


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    save(tmp_path / "model", "token")
    made = save(tmp_path / "model", "adaln")
    assert_same(made, load_pretrained(tmp_path / "model"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path: Path) -> None:
    thesis = tmp_path / "documents" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("ten years", encoding="utf-8")
    with pytest.raises(ValueError, match="documents"):
        save(tmp_path / "documents")
    assert thesis.read_text(encoding="utf-8") == "ten years"


def test_the_folder_holds_no_pickle(tmp_path: Path) -> None:
    save(tmp_path / "model")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(names)
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".md", ".jinja"}
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["format_version"] == 1
    assert config["model_type"] == "monoformer"


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    save(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    for name in ("model.safetensors", "pytorch_model.bin", "model.pt"):
        (tmp_path / "model" / name).write_bytes(pickle.dumps({"tokens.weight": Trap(tmp_path / "sprung")}))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="only safetensors"):
        load_pretrained(tmp_path / "model")
    assert not (tmp_path / "sprung").exists()


def test_finetuning_keeps_how_the_model_draws(tmp_path: Path) -> None:
    made = tiny.pretrained("token", diffusion=DDPMConfig(variance="learned"), image_sizes=((16, 16),))
    made = replace(made, generate=GenerateConfig(sampler="ddpm", steps=30, guidance=3.5, stop=("x",)))
    save_pretrained(tmp_path / "model", made)
    config = replace(
        PRESETS["finetune"](), start=str(tmp_path / "model"), folder=str(tmp_path / "run"), data=ScenesData(size=16),
        sequence=SequenceConfig(row=96, window=8),
    )  # fmt: skip
    built = build_run(config)
    assert built.pretrained.generate == built.parts.config.generate == made.generate
    own = replace(config, generate=GenerateConfig(guidance=2.0, max_tokens=9))
    assert build_run(own).pretrained.generate == replace(made.generate, guidance=2.0, max_tokens=9)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_named(name: str, share: float, tmp_path: Path) -> None:
    save(tmp_path / "model")
    file = tmp_path / "model" / name
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(
        ValueError, match=name.replace(".", r"\.") if name != "tokenizer.json" else "tokenizer"
    ) as caught:
        load_pretrained(tmp_path / "model")
    assert "\n" not in str(caught.value).strip()


def test_a_damaged_index_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monoformer.pretrained.weights.SHARD_SIZE", "60KB")
    save(tmp_path / "model")
    for text in ("{", "{}", "[]"):
        (tmp_path / "model" / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
            load_pretrained(tmp_path / "model")


def test_an_index_cannot_point_outside_the_folder(tmp_path: Path) -> None:
    save(tmp_path / "other")
    save(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    index = {"weight_map": {"tokens.weight": "../other/model.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ValueError, match="has no"):
        load_pretrained(tmp_path / "model")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}), encoding="utf-8")


def test_a_run_stands_for_its_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    save_config(tiny.run_config(run), run / "config.json")
    with pytest.raises(ValueError, match="is a run that has not made its model yet"):
        load_pretrained(find_folder(run))
    save(run / "model")
    assert find_folder(run) == run / "model"
    assert find_folder(run / "model") == run / "model"
    load_pretrained(find_folder(run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version 2, newer than 1; upgrade"),
        ({"format_version": "1"}, "format_version"),
        ({"format_version": None}, "format_version"),
        ({"model_type": "llama"}, "does not describe a MonoFormer"),
        ({"model": None}, "model"),
        ({"moddel": {}}, "no field 'moddel'; did you mean 'model'"),
        ({"diffusion": {"kind": "Flow"}}, "FlowConfig, DDPMConfig"),
    ],
)
def test_a_config_that_is_no_model_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(tmp_path / "model")
    edit_config(tmp_path / "model", **changes)
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path / "model")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "model")
    save(tmp_path / "other", layers=1)
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model" / "model.safetensors")
    with pytest.raises(ValueError, match=r"do not fit its config\.json"):
        load_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_without_a_config_is_no_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    why = {"empty": r"it has no config\.json", "absent": "there is no such folder"}[name]
    with pytest.raises(ValueError, match=f"{name} is no model folder: {why}"):
        load_pretrained(tmp_path / name)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "model")
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="tokenizer"):
        load_pretrained(tmp_path / "model")


def test_other_weights_forget_what_the_cache_knew() -> None:
    made, prompt = tiny.pretrained(), "a red circle beside a blue square"
    pipeline = Pipeline(replace(made, model=deepcopy(made.model)))
    pipeline.generate_images(prompt, steps=2)
    with torch.no_grad():
        made.model.tokens.weight.neg_()
    pipeline.load_weights(made.model.state_dict())
    (drawn,), (fresh,) = (own.generate_images(prompt, steps=2) for own in (pipeline, Pipeline(made)))
    assert drawn.tobytes() == fresh.tobytes()


def test_a_link_is_written_where_it_points_and_the_current_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    save_pretrained(tmp_path / "link", tiny.pretrained())
    assert (tmp_path / "link").is_symlink()
    assert Pipeline.from_pretrained(tmp_path / "disk").generate_text("a", max_tokens=1)
    monkeypatch.chdir(tmp_path / "disk")
    with pytest.raises(ValueError, match=r"is the current folder .* name a folder within it"):
        save_pretrained(".", tiny.pretrained())
    assert not list(tmp_path.glob("*.incomplete"))


def test_files_that_are_no_model_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="own holds something else than a model, so name another folder"):
        save_pretrained(tmp_path / "own", tiny.pretrained())
    assert (tmp_path / "own" / "thesis.txt").read_text() == "years of work"
