"""Shared pieces of the commands: parsing dataclasses with tyro, pictures in and out."""

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from PIL import Image as PILImage
from rich.console import Console

from monoformer.config.generate import check_matters
from monoformer.pipeline import Pipeline

T = TypeVar("T")

Precision: TypeAlias = Literal["auto", "fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype | None] = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}
"""Types of weights by what the options call them; None: what decides is elsewhere."""


def parse(kind: type[T], arguments: list[str], *, command: str, default: T | None = None) -> T:
    """A dataclass from command-line arguments; its docstrings are the help.

    A misspelt option ends the program with the nearest right ones. Raises ValueError for values that contradict.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    result: T = _parse(kind, arguments, command, **options)
    return result


def parse_some(kind: type[T], arguments: list[str], *, command: str) -> tuple[T, list[str]]:
    """`parse`, and the arguments that are none of its own, in their order."""
    result: tuple[T, list[str]] = _parse(kind, arguments, command, return_unknown_args=True)
    return result


def _parse(kind: type[T], arguments: list[str], command: str, **options: Any) -> Any:
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind, args=arguments, prog=f"monoformer {command}", config=(tyro.conf.AvoidSubcommands,), **options
            )
    except SystemExit:
        text = said.getvalue()
        contradiction = re.search(r"Error parsing \w+: (.*?)\s*[\u2500-]{8}", _without_frame(text), flags=re.DOTALL)
        if contradiction:
            raise ValueError(contradiction.group(1)) from None
        sys.stderr.write(text)
        raise


def _without_frame(text: str) -> str:
    """What stands in a box drawn around wrapped lines, as one line."""
    return " ".join(line.strip("\u2502| ").strip() for line in text.splitlines())


def take(arguments: list[str], **defaults: str) -> tuple[list[str], dict[str, str]]:
    """The arguments without `--NAME VALUE` and `--NAME=VALUE` of these names, and their values."""
    rest, given, at = [], dict(defaults), 0
    while at < len(arguments):
        name, equals, value = arguments[at].partition("=")
        if name.removeprefix("--") not in defaults or not name.startswith("--"):
            rest.append(arguments[at])
        elif equals:
            given[name[2:]] = value
        elif at + 1 < len(arguments):
            at += 1
            given[name[2:]] = arguments[at]
        else:
            raise ValueError(f"{name} needs a value")
        at += 1
    return rest, given


def whole_number(name: str, value: str, *, least: int = 0) -> int:
    """The number that an option `--NAME` was given. Raises ValueError where it is none, or too small."""
    if not value.isdecimal() or int(value) < least:
        raise ValueError(f"--{name} must be a number from {least} up, but is {value!r}")
    return int(value)


def called() -> str:
    """How a shell finds this program: by name, or by its path where an environment that is not active holds it."""
    own = Path(sys.executable).with_name("monoformer")
    return "monoformer" if shutil.which("monoformer") or not own.is_file() else os.path.relpath(own)


def say_go_on(console: Console, arguments: list[str]) -> None:
    """After work was stopped: the command that goes on with it, as a shell takes it."""
    command = shlex.join([called(), *arguments])
    say = f"stopped and saved; the same command goes on from here:\n  {command}"
    console.print(say, markup=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What may be changed for one call; what is not given stays as the model folder says."""

    steps: int | None = None
    """Denoising steps of a picture."""
    spacing: str | None = None
    """Where the steps lie in time: uniform, or quadratic with more of them near the clean picture."""
    eta: float | None = None
    """Noise that ddim adds in every step, from 0 to 1."""
    guidance: float | None = None
    """Classifier-free guidance; 1 means none."""
    image_guidance: float | None = None
    """Guidance toward the pictures that are read, in an edit; 1 means none."""
    guidance_interval: tuple[float, float] | None = None
    """Times between which guidance is applied, from 0 (clean) to 1 (noise)."""
    guidance_rescale: float | None = None
    """How far guidance's deviation is drawn back, from 0 to 1."""
    negative: str | None = None
    """A text that guidance leads away from."""
    guided_channels: int | None = None
    """Channels of the latent that guidance strengthens, the first ones; 0: all."""
    sampler: str | None = None
    """euler, heun (flow), ddpm (DDPM), ddim or dpm++2m (both)."""
    temperature: float | None = None
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Sample among the k likeliest tokens."""
    top_p: float | None = None
    """Sample among the likeliest tokens that together reach this probability."""
    min_p: float | None = None
    """Sample among tokens at least so many times as likely as the likeliest."""
    repetition_penalty: float | None = None
    """Above 1, words of the text so far become less likely."""
    logit_bias: tuple[str, ...] | None = None
    """What is added to tokens' logits, as ID:NUMBER; -100 forbids one."""
    stop: tuple[str, ...] | None = None
    """Texts that end the writing; they are not part of it."""
    max_tokens: int | None = None
    """Most text tokens written."""
    seed: int | None = None
    """Seed of the first item."""

    def given(self, *, want: str = "any", chooses: bool = False) -> dict[str, Any]:
        """Only what was given. Raises ValueError for what cannot matter where this is wanted (`check_matters`)."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        check_matters(found, want=want, chooses=chooses, option="--sampling.")
        if self.logit_bias is not None:
            found["logit_bias"] = tuple(map(_bias, self.logit_bias))
        return found


def _bias(said: str) -> tuple[int, float]:
    """A token's id and what is added to its logit. Raises ValueError for another form."""
    token, _, bias = said.partition(":")
    try:
        return int(token), float(bias)
    except ValueError:
        raise ValueError(f"--sampling.logit-bias is ID:NUMBER, such as 300:2.5, but is {said!r}") from None


@dataclass(frozen=True, kw_only=True)
class Use:
    """Options that every command which runs a model has."""

    sampling: Sampling = field(default_factory=Sampling)
    """Settings of writing and drawing."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""
    precision: Precision = "auto"
    """Of weights and arithmetic; auto takes bf16 where the device multiplies it faster than fp32."""
    autoencoder: str | None = None
    """Folder or hub name of the autoencoder of its latents, in place of the one that the model folder names."""

    @property
    def dtype(self) -> torch.dtype | None:
        """The precision as a type; None: the device decides."""
        return DTYPES[self.precision]

    def open(self, model: str, *, device: str = "", slots: int = 64, compile: bool = False) -> Pipeline:
        """The model as these options want it."""
        return Pipeline.from_pretrained(
            model, device=device or self.device, dtype=self.dtype, slots=slots, compile=compile,
            autoencoder=self.autoencoder,
        )  # fmt: skip


def check_picture_file(path: Path, *, option: str = "--out") -> None:
    """Refuse, before anything is drawn, a file that could not be saved as a picture. Raises ValueError."""
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; name a picture in it, such as {path / 'picture.png'}")
    if PILImage.registered_extensions().get(path.suffix.lower()) not in PILImage.SAVE:
        raise ValueError(f"{option} {path} does not end like a picture; end it in .png, .jpg or .webp")
    check_folder(path.parent, option=option)


def check_folder(folder: Path, *, option: str = "--out") -> None:
    """Refuse a folder that cannot be made, or not be written into. Raises ValueError."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{option} would be below {there}, which is a file; name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{option} would be in {there}, which you may not write into; name another place")


def save_pictures(pictures: list[PILImage.Image], out: Path) -> list[Path]:
    """Save one picture as `out`, several as out-0, out-1, ...; the paths."""
    out.parent.mkdir(parents=True, exist_ok=True)
    paths = [out] if len(pictures) == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    return paths
