"""A run has one precision, from its first step to its last and on all of its processes."""

from pathlib import Path

import pytest
import torch

from monoformer.config.run import RunConfig, save_config
from monoformer.train.parallel import ALONE
from monoformer.train.settled import settled
from tests import tiny

CPU = torch.device("cpu")


def with_precision(folder: Path, precision: str) -> RunConfig:
    return tiny.run_config(folder, train={"precision": precision})


def test_what_is_left_open_is_decided_when_a_run_begins(tmp_path: Path) -> None:
    assert settled(with_precision(tmp_path, "auto"), device=CPU, ranks=ALONE).train.precision in ("bf16", "fp32")
    assert settled(with_precision(tmp_path, "bf16"), device=CPU, ranks=ALONE).train.precision == "bf16"


@pytest.mark.parametrize("begun", ["fp32", "bf16", "auto"])
def test_a_run_goes_on_as_it_began_whatever_is_faster_now(tmp_path: Path, begun: str) -> None:
    (tmp_path / "checkpoints" / "step-00000002").mkdir(parents=True)
    save_config(with_precision(tmp_path, begun), tmp_path / "config.json")
    assert settled(with_precision(tmp_path, "auto"), device=CPU, ranks=ALONE).train.precision == begun
