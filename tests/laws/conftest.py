"""The laws run on one thread: their matrices are tiny, and two threads that wait for each other on shared cores made
them ten times slower (measured: 47 seconds against 6 minutes beside a training run).
"""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread(_deterministic: None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
