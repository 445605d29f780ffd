"""Which device to compute on. Knows nothing of models; nothing else in the package asks what the machine has."""

import warnings
from functools import cache

import torch

UNTRIED = ("cuda", "mps")
"""Device types on which no part of this package has run yet (docs/status.md); computing there says so once."""


def available() -> list[str]:
    """Device types that this machine can compute on, the fastest first; `cpu` is always the last."""
    found = []
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def choose(name: str = "auto") -> torch.device:
    """The named device (`cuda`, `cuda:1`, `mps`, `cpu`), or with `auto` the first of cuda, mps and cpu that is there.

    Raises ValueError for a device that is unknown or not on this machine, and says which ones are.
    """
    here = available()
    if name == "auto":
        name = here[0]
    kind, _, index = name.partition(":")
    if kind not in here:
        raise ValueError(f"device {name!r} is not on this machine; there is {', '.join(here)} (or auto)")
    if index:
        count = torch.cuda.device_count() if kind == "cuda" else 1
        if not index.isdecimal() or int(index) >= count:
            raise ValueError(f"device {name!r} is not on this machine; {kind} has {count}, numbered from 0")
    announce(kind)
    return torch.device(name)


@cache
def announce(kind: str) -> None:
    """Warn, once a process, of a device type that nothing here has ever run on."""
    if kind in UNTRIED:
        warnings.warn(
            f"this package has never run on {kind} (docs/status.md): check results, and tell us what you find; "
            f"benchmarks/gpu.sh checks and times everything in one command",
            stacklevel=3,
        )


def has_bf16_units(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than fp32: CUDA, or a CPU with AMX.

    A CPU with avx512_bf16 alone is slower in bf16 (measured: 160 against 310 GFLOP/s on two cores).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported())


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    match device.type:
        case "cuda":
            torch.cuda.synchronize(device)
        case "mps":
            torch.mps.synchronize()
        case _:
            pass


def keep_freed_memory() -> None:
    """Let the C library keep what it frees, so that a training step does not fault the same pages in again.

    Only where there is glibc. Measured: a step of 8192 tokens at width 256 went from 2.0 to 1.85 s on two cores.
    """
    import ctypes
    import sys

    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    mallopt = getattr(library, "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap is not given back
