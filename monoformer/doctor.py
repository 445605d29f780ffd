"""What this installation can do: versions, device, speed of matrix products, attention backends, extras.

Knows nothing of models or runs, needs no network, and takes about two seconds. Invariant: it reports, it never raises;
what cannot be found out is said in its row.
"""

import os
import platform
import sys
import warnings
from importlib import metadata

import torch
from torch.nn.attention.flex_attention import flex_attention

from monoformer import __version__
from monoformer.device import available, choose, has_bf16_units, matrix_speed

PACKAGES = ("torch", "numpy", "transformers", "tokenizers", "datasets", "safetensors")
"""Packages whose versions a report of a problem should give."""

EXTRAS = {
    "autoencoders": ("diffusers",),
    "tracking": ("tensorboard", "wandb"),
    "lora": ("peft",),
    "sentencepiece": ("sentencepiece", "protobuf"),
    "serve": ("fastapi", "fastapi-offline", "uvicorn", "gradio", "prometheus-client", "python-multipart"),
    "scale": ("ray",),
    "evaluate": ("lm_eval", "torch-fidelity", "pycocoevalcap"),
    "docs": ("mkdocs", "mkdocs-material"),
}
"""Optional packages by the extra that installs them, as in pyproject.toml."""


def report() -> list[tuple[str, str]]:
    """Rows of (what, finding), in reading order."""
    device = choose()
    return [
        ("monoformer", __version__),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        *((name, _version(name) or "missing: pip install monoformer") for name in PACKAGES),
        ("platform", platform.platform()),
        ("device", describe_device(device)),
        ("cpu threads", f"{torch.get_num_threads()} used by torch, {os.cpu_count()} in the machine"),
        ("matrix products", _compare_precisions(device)),
        ("attention: SDPA", _list_sdpa_kernels(device)),
        ("attention: FlexAttention", _probe_flex_attention(device)),
        *((f"extra: {name}", _describe_extra(name, packages)) for name, packages in EXTRAS.items()),
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_device(device: torch.device) -> str:
    """What the device is, and which others are there."""
    others = ", ".join(name for name in available() if name != device.type)
    match device.type:
        case "cuda":
            properties = torch.cuda.get_device_properties(device)
            detail = f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB each"
        case "mps":
            detail = f"Apple GPU, {torch.mps.recommended_max_memory() / 2**30:.0f} GiB usable"
        case _:
            detail = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{device.type} ({detail})" + (f"; also {others}" if others else "")


def _compare_precisions(device: torch.device) -> str:
    try:
        fp32 = matrix_speed(device, torch.float32)
        bf16 = matrix_speed(device, torch.bfloat16)
    except RuntimeError as error:  # a device without bf16
        return f"could not be measured: {str(error).splitlines()[0]}"
    advice = f"--train.precision auto takes {'bf16' if has_bf16_units(device) else 'fp32'} here"
    numbers = (
        f"{name} {speed:,.{0 if speed >= 10 else 2}f} GFLOP/s" for name, speed in (("bf16", bf16), ("fp32", fp32))
    )
    return f"{', '.join(numbers)}; {advice}"


def _list_sdpa_kernels(device: torch.device) -> str:
    if device.type != "cuda":
        return "available, trainable"
    switches = {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "cuDNN": torch.backends.cuda.cudnn_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
    }
    return f"available, trainable; kernels: {', '.join(name for name, enabled in switches.items() if enabled)}"


def _probe_flex_attention(device: torch.device) -> str:
    """Runs it once forward and once backward, uncompiled: what a device refuses, it refuses there too."""
    q = torch.ones(1, 1, 16, 16, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on CUDA it advises torch.compile, which the model uses
        try:
            flex_attention(q, q, q)
        except (RuntimeError, ValueError) as error:  # NotImplementedError is a RuntimeError
            return f"not on this device: {str(error).splitlines()[0]}"
        q.requires_grad_()
        try:
            flex_attention(q, q, q).sum().backward()
        except (RuntimeError, ValueError):
            return "available, not trainable on this device (training uses SDPA)"
    return "available, trainable"


def _describe_extra(name: str, packages: tuple[str, ...]) -> str:
    versions = {package: _version(package) for package in packages}
    present = ", ".join(f"{package} {number}" for package, number in versions.items() if number)
    absent = ", ".join(package for package, number in versions.items() if not number)
    if not absent:
        return present
    missing = f"missing {absent}: pip install 'monoformer[{name}]'"
    return f"{present}; {missing}" if present else missing
