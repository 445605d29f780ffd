"""Which device to compute on, and what it can do. Knows nothing of models; nothing else asks what the machine has."""

import contextlib
import ctypes
import gc
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Gpu(NamedTuple):
    """A GPU by its maker's data sheet, dense matrices (no sparsity)."""

    bf16: float
    """Bf16 matrix products with fp32 sums, FLOP/s."""
    fp32: float
    """Fp32 matrix products, FLOP/s; without TF32."""
    memory: float
    """Memory that programs can use, GiB."""
    link: float
    """Bytes a second from one GPU to the others of its machine."""


GPUS = {
    "h100": Gpu(989e12, 67e12, 79, 450e9),
    "h100pcie": Gpu(756e12, 51e12, 79, 64e9),
    "h200": Gpu(989e12, 67e12, 139, 450e9),
    "b200": Gpu(2250e12, 75e12, 178, 900e9),
    "a100": Gpu(312e12, 19.5e12, 79, 300e9),
    "a10040gb": Gpu(312e12, 19.5e12, 39, 300e9),
    "l40s": Gpu(362e12, 91.6e12, 44, 32e9),
    "l4": Gpu(121e12, 30.3e12, 22, 32e9),
    "a10": Gpu(125e12, 31.2e12, 22, 32e9),
    "rtx4090": Gpu(165e12, 82.6e12, 23.5, 32e9),
    "rtx3090": Gpu(71e12, 35.6e12, 23.5, 32e9),
    "mi300x": Gpu(1307e12, 163e12, 191, 448e9),
}
"""GPUs by short name."""

TRIED: dict[str, frozenset[str]] = {"cuda": frozenset(), "mps": frozenset()}
"""What has run on a device type: the features of docs/status.md, each by its proof's name (`muon`: test_muon.py). What
is used there and has not says so once; where nothing has, the first use of the device does."""


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


def announce(kind: str, *features: str) -> None:
    """Warn, once a process, of what is used on a device type and never ran there; `features` are `TRIED`'s names."""
    tried = TRIED.get(kind)
    if tried is None:
        return
    for feature in sorted({*features} - tried) if tried else [""]:
        _warn_of(feature, kind)


@cache
def _warn_of(feature: str, kind: str) -> None:
    what = f"{feature!r} of this package" if feature else "this package"
    warnings.warn(
        f"{what} has never run on {kind} (docs/status.md): check results, and tell us what you find; "
        f"benchmarks/gpu.sh checks and times everything in one command",
        stacklevel=4,
    )


@cache
def has_bf16_units(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than fp32: CUDA, a CPU with AMX, or one that is seen to.

    Of CPUs with avx512_bf16 alone, AMD's do it 2.2 times as fast as fp32, while some of Intel's take twice as long
    (measured: 423 and 189 GFLOP/s, 160 and 310); so they are tried, once a process, in 0.2 s. The first few products of
    a process are slow in bf16 (34 GFLOP/s): the second of two rounds counts.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or torch.cpu._is_amx_tile_supported():
        return device.type == "cpu"
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    for _ in range(2):
        bf16, fp32 = (matrix_speed(device, dtype, size=512, seconds=0.05) for dtype in (torch.bfloat16, torch.float32))
    return bf16 > 1.3 * fp32


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    match device.type:
        case "cuda":
            torch.cuda.synchronize(device)
        case "mps":
            torch.mps.synchronize()
        case _:
            pass


def find_gpu(name: str) -> Gpu | None:
    """The entry of `GPUS` that a device's own name is of (`NVIDIA H100 80GB HBM3`); None for one not listed."""
    short = re.sub(r"[^a-z0-9]", "", name.lower())
    if "a100" in short and "40gb" in short:
        return GPUS["a10040gb"]
    if "h100" in short and "pcie" in short:
        return GPUS["h100pcie"]
    found = [own for own in GPUS if own in short]
    return GPUS[max(found, key=len)] if found else None


@cache
def peak_speed(device: torch.device, *, bf16: bool) -> float:
    """Most FLOP/s in matrix products: by the table for a GPU that is in it, else measured once, in 0.1 s."""
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is not None:
        return gpu.bf16 if bf16 else gpu.fp32
    size = 4096 if device.type == "cuda" else 1024
    return 1e9 * matrix_speed(device, torch.bfloat16 if bf16 else torch.float32, size=size, seconds=0.1)


def matrix_speed(device: torch.device, dtype: torch.dtype, *, size: int = 1024, seconds: float = 0.2) -> float:
    """Best speed of a `size`-cubed matrix product within `seconds`, in GFLOP/s (a multiply-add counts as two).

    A smaller one where it is so slow that two would not fit: bf16 on a CPU without units for it takes a minute.
    """
    side = min(256, size)
    while True:
        a = torch.ones(side, side, device=device, dtype=dtype)
        _timed_product(a)  # the first product chooses and loads kernels
        best = min(_timed_product(a) for _ in range(3))
        if side == size or 16 * best > seconds:
            break
        side = min(2 * side, size)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, _timed_product(a))
    return 2 * side**3 / best / 1e9


def _timed_product(a: Tensor) -> float:
    start = time.perf_counter()
    a @ a
    synchronize(a.device)
    return time.perf_counter() - start


def host_peak() -> float:
    """Most bytes that this process has held; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would tell the peak of the process that started this one
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        return float(found[1]) * 1024 if found else 0.0
    if sys.platform == "darwin":
        import resource

        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return 0.0


def forget_host_peak() -> None:
    """Begin `host_peak` anew with what is held now, freed memory given back first; where the system can (Linux)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@contextlib.contextmanager
def left_to_live() -> Iterator[None]:
    """The garbage collector leaves alone what is there now: it would look at all of it again and again, which costs a
    loader more than its documents do.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def total_memory(device: torch.device) -> float:
    """Bytes of memory that a program on the device can use; 0 where the system does not tell."""
    match device.type:
        case "cuda":
            return float(torch.cuda.get_device_properties(device).total_memory)
        case "mps":
            return float(torch.mps.recommended_max_memory())
        case _:
            names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
            known = sys.platform != "win32" and all(name in os.sysconf_names for name in names)
            return float(os.sysconf(names[0]) * os.sysconf(names[1])) if known else 0.0


def keep_freed_memory() -> None:
    """Let the C library keep what it frees, so that a training step does not fault the same pages in again.

    Only where there is glibc. Measured: a step of 8192 tokens at width 256 went from 2.0 to 1.85 s on two cores.
    """
    import ctypes

    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    mallopt = getattr(library, "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap is not given back
