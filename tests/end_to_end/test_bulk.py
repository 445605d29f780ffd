"""Many pictures from a file of prompts: two ranks make what one makes, and a killed run goes on to the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from monoformer.cli.bulk import LATER, autoencoder_of
from monoformer.cli.main import main
from monoformer.evaluate.prompts import read_lines
from monoformer.evaluate.references import open_drawn
from monoformer.tokenizer import Tokenizer
from tests.end_to_end.test_command_line import fails, load

LINES = ("a large red circle", "a small blue square", "a green ring on a white background")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(LINES) + "\n")
    return file


def contents(folder: Path) -> dict[str, bytes]:
    """All files, an .npz as its array's bytes (an archive tells its time)."""
    return {
        path.name: np.load(path)["arr_0"].tobytes() if path.suffix == ".npz" else path.read_bytes()
        for path in sorted(folder.iterdir())
    }


def test_two_ranks_are_one_and_a_killed_run_goes_on(
    run: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(name: str, *more: str) -> Path:
        main(["generate", str(run / "model"), f"--prompts={prompts}", "--num=7", f"--out={tmp_path / name}", *more])
        return tmp_path / name

    one = draw("one", "--chunk=2", "--sampling.seed=5")
    alone = contents(one)
    assert alone.keys() == {"bulk.json", "pictures.npz", *(f"{index:08d}.png" for index in range(7))}
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        two = draw("two", "--chunk=2", "--sampling.seed=5")
        assert (two / "pictures.npz").is_file() == (rank == "0"), "whoever ends last gathers"
    assert contents(two) == alone
    for name in ("00000002.png", "00000005.png", "pictures.npz"):
        (two / name).unlink()
    (two / "00000005.png.0.incomplete").write_bytes(b"torn")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert contents(draw("two", "--chunk=2", "--sampling.seed=5")) == alone

    drawn = open_drawn(str(one / "pictures.npz"))
    assert drawn.count == 7
    assert np.array_equal(drawn.picture(6).permute(1, 2, 0), np.array(load(one / "00000006.png")))
    main(["generate", str(run / "model"), LINES[0], "--sampling.seed=11", f"--out={tmp_path / 'single.png'}"])
    single, sixth = (np.array(load(path)).astype(int) for path in (tmp_path / "single.png", one / "00000006.png"))
    assert abs(single - sixth).max() <= 1, "prompt 6 % 3, seed 5 + 6"
    error = fails(capsys, "generate", str(run / "model"), f"--prompts={prompts}", "--num=7", f"--out={one}")
    assert "chunk was 2 and is 64; seed was 5 and is not given" in error
    assert "a folder as --out" in fails(capsys, "generate", str(run / "model"), f"--prompts={prompts}")
    assert "no effect without --prompts" in fails(capsys, "generate", str(run / "model"), "a", "--form=webdataset")


def test_webdataset_shards_hold_the_same_pictures_and_prompts(run: Path, tmp_path: Path) -> None:
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in LINES))
    for form in ("png", "webdataset"):
        arguments = ["generate", str(run / "model"), f"--prompts={lines}", "--chunk=2", f"--out={tmp_path / form}"]
        main([*arguments, f"--form={form}"])
    with tarfile.open(tmp_path / "webdataset" / "000001.tar") as shard:
        assert shard.getnames() == ["00000002.png", "00000002.txt"]
        found = [shard.extractfile(name) for name in shard.getnames()]
        assert [file.read() for file in found if file] == [
            (tmp_path / "png" / "00000002.png").read_bytes(), LINES[2].encode(),
        ]  # fmt: skip
    arrays = [np.load(tmp_path / form / "pictures.npz")["arr_0"] for form in ("png", "webdataset")]
    assert np.array_equal(*arrays)


@pytest.mark.parametrize("form", ["png", "webdataset"])
def test_more_are_drawn_later_and_what_cannot_be_drawn_is_left_out(
    run: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, lines = tmp_path / "model", tmp_path / "prompts.txt"
    shutil.copytree(run / "model", model)
    weights = load_file(model / "model.safetensors")
    (broken,) = Tokenizer.from_folder(model).encode("~")
    (name,) = [name for name in weights if name.endswith("embed_tokens.weight") or name == "tokens.weight"]
    weights[name][broken] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    lines.write_text("\n".join([*LINES, "a ~ circle"]) + "\n")

    def draw(count: int, out: str) -> int:
        try:
            main(["generate", str(model), f"--prompts={lines}", f"--num={count}", "--chunk=4", f"--form={form}",
                  f"--out={tmp_path / out}"])  # fmt: skip
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    assert draw(2, "grown") == 0
    assert len(np.load(tmp_path / "grown" / "pictures.npz")["arr_0"]) == 2
    capsys.readouterr()
    assert draw(9, "grown") == draw(9, "once") == 1
    said = capsys.readouterr().err
    assert "picture 3 cannot be drawn: the model's numbers are not finite" in said
    assert "2 of 9 pictures cannot be drawn" in said
    assert contents(tmp_path / "grown") == contents(tmp_path / "once")
    assert len(np.load(tmp_path / "grown" / "pictures.npz")["arr_0"]) == 7
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "once").iterdir()}
    assert draw(9, "once") == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "once").iterdir()} == before, "nothing again"
    assert draw(4, "once") == 2, "fewer would be another set"


def test_a_line_that_is_too_long_is_left_out_and_wrong_settings_are_no_fault_of_a_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, long = tmp_path / "prompts.txt", "a red circle " * 200
    lines.write_text("\n".join([LINES[0], long, LINES[1], long, long]) + "\n")
    command = ["generate", str(run / "model"), f"--prompts={lines}", "--chunk=3", f"--out={tmp_path / 'drawn'}"]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 1
        assert "3 of 5 pictures cannot be drawn" in capsys.readouterr().err
    assert len(np.load(tmp_path / "drawn" / "pictures.npz")["arr_0"]) == 2
    assert "too many for the model's context" in (tmp_path / "drawn" / "00000003.failed").read_text()
    wrong = [*command[:-1], "--sampling.sampler=ddpm", f"--out={tmp_path / 'wrong'}"]
    assert "sampler" in fails(capsys, *wrong)
    assert not list((tmp_path / "wrong").glob("*.failed"))


def test_prompts_end_where_lines_end_and_are_texts(tmp_path: Path) -> None:
    lines, objects = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    said = ("a red\u2028circle", "a\x0bblue\x0csquare", "the\x85end")
    lines.write_bytes("\r\n\n".join([*said, ""]).encode())
    assert read_lines(lines) == said
    objects.write_bytes("\n".join(json.dumps({"prompt": one}, ensure_ascii=False) for one in said).encode())
    assert read_lines(objects) == said
    for wrong in ('{"prompt": null}', '{"prompt": ["a"]}', '{"prompt": " "}', '{"prompt": 3}', '{"text": "a"}', "[1]"):
        objects.write_text('{"prompt": "a"}\n\n' + wrong + "\n")
        with pytest.raises(ValueError, match=r"prompts.jsonl:3 needs a 'prompt' that is a text"):
            read_lines(objects)
    objects.write_text('{"prompt": "a"}\n{"prompt"\n')
    with pytest.raises(ValueError, match=r"prompts.jsonl:2 is no JSON"):
        read_lines(objects)


def test_another_precision_or_autoencoder_is_another_command(
    run: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", str(run / "model"), f"--prompts={prompts}", f"--out={tmp_path / 'out'}"]
    main([*command, "--precision=fp32"])
    assert "precision was float32 and is bfloat16" in fails(capsys, *command, "--precision=bf16")
    state = tmp_path / "out" / "bulk.json"
    said = json.loads(state.read_text())
    assert said["autoencoder"] == ""
    state.write_text(json.dumps(said | {"autoencoder": "somebody/else"}))
    assert "another autoencoder" in fails(capsys, *command, "--precision=fp32")
    state.write_text(json.dumps({name: value for name, value in said.items() if name not in LATER}))
    main([*command, "--precision=fp32"])  # begun before these were noted


def test_an_autoencoder_is_known_by_what_its_folder_holds(tmp_path: Path) -> None:
    for name, weights in (("one", b"a"), ("two", b"a"), ("three", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    found = [autoencoder_of(str(tmp_path / name)) for name in ("one", "two", "three")]
    assert found[0] == found[1] != found[2]
    assert autoencoder_of("") == ""
    assert autoencoder_of("owner/name") == "owner/name"


def test_all_pictures_are_gathered_again_where_one_was_drawn_again(run: Path, prompts: Path, tmp_path: Path) -> None:
    command = ["generate", str(run / "model"), f"--prompts={prompts}", f"--out={tmp_path / 'out'}"]
    main(command)
    whole, first = tmp_path / "out" / "pictures.npz", tmp_path / "out" / "00000000.png"
    expected = np.load(whole)["arr_0"]
    np.savez(whole, arr_0=np.zeros_like(expected))  # of as many, but others
    first.unlink()
    main(command)
    assert np.array_equal(np.load(whole)["arr_0"], expected)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
def test_a_run_killed_at_any_moment_goes_on(run: Path, prompts: Path, tmp_path: Path) -> None:
    def start(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "monoformer", "generate", str(run / "model"), f"--prompts={prompts}"]
        return subprocess.Popen([*command, "--num=40", "--chunk=4", f"--out={tmp_path / out}"], stderr=subprocess.PIPE)

    with start("straight") as straight:
        assert straight.wait() == 0
    for pictures in (1, 9, 30):
        with start("killed") as killed:
            while killed.poll() is None and len(list((tmp_path / "killed").glob("*.png"))) < pictures:
                time.sleep(0.002)
            killed.send_signal(signal.SIGKILL)
    with start("killed") as last:
        assert last.wait() == 0
    found = {name: content for name, content in contents(tmp_path / "killed").items() if "incomplete" not in name}
    assert found == contents(tmp_path / "straight")
