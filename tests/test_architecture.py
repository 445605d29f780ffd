"""The package keeps the rules of tests/architecture.py, and the rules can fail: each finds a small module's fault."""

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.architecture import (
    PACKAGE,
    RULES,
    Module,
    check_calls,
    check_docstrings,
    check_import_form,
    check_levels,
    check_names,
    check_randomness,
    check_sizes,
)

ROOT = Path(__file__).resolve().parent.parent


def read_package() -> list[Module]:
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    return [Module(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removeprefix("check_"))
def test_package_keeps_rule(rule: Callable[[Module], Iterator[str]]) -> None:
    findings = [finding for module in read_package() for finding in rule(module)]
    if findings:
        pytest.fail("\n".join([f"{len(findings)} findings: {rule.__doc__}", *findings]), pytrace=False)


def test_package_is_there_and_typed() -> None:
    assert len(read_package()) > 5
    assert (ROOT / PACKAGE / "py.typed").is_file()


def test_extras_of_doctor_are_those_of_pyproject() -> None:
    from monoformer.doctor import EXTRAS

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    declared = {name: tuple(re.split(r"[\[>]", need)[0] for need in needs) for name, needs in extras.items()}
    del declared["dev"]
    assert declared == EXTRAS


DOC = '"""Doc."""\n'
LONG_BODY = "\n".join(["def f():", '    """Doc\n\n    more.\n    """', *["    pass"] * 49])
WRONG = [
    (check_levels, "train/x.py", "from monoformer.generate.engine import Engine", "sibling on level 5"),
    (check_levels, "batch.py", "def f():\n    from monoformer import document", "x.py:2: 'batch' imports 'document'"),
    (check_levels, "data/x.py", "import monoformer.train.trainer", "import only lower levels"),
    (
        check_levels,
        "data/x.py",
        "if TYPE_CHECKING:\n    from monoformer.model.attention import A",
        "must not know 'model'",
    ),
    (check_levels, "model/x.py", "from monoformer.config.train import TrainConfig", "may see only batch, config.model"),
    (check_levels, "cli.py", "import monoformer", "hides which room"),
    (check_levels, "cli.py", "from monoformer import Pipeline", "import it from its own module"),
    (check_levels, "novelty.py", "", "add it to LEVELS"),
    (check_import_form, "model/x.py", "from . import attention", "relative import"),
    (check_import_form, "serve/x.py", "try:\n    import gradio\nexcept ImportError:\n    pass", "'gradio' is optional"),
    (check_import_form, "cli.py", "from importlib import import_module as i\ni('monoformer.serve')", "hides the room"),
    (check_import_form, "config/x.py", "import torch", "standard library only"),
    (check_sizes, "cli.py", "\n" * 301, "301 lines, more than 300"),
    (check_sizes, "cli.py", LONG_BODY + "\n    pass", "'f' has 51 lines"),
    (check_names, "train/image_utils.py", "", "'image_utils'"),
    (check_names, "cli.py", "class CacheManager:\n    pass", "'CacheManager'"),
    (check_calls, "cli.py", "hasattr(1, 'x')", "hasattr"),
    (check_calls, "cli.py", "from torch import load", "torch.load is a pickle"),
    (check_calls, "cli.py", "import torch as t\nt.load('x')", "torch.load is a pickle"),
    (check_calls, "cli.py", "import numpy\nnumpy.load('x', allow_pickle=True)", "allow_pickle"),
    (check_randomness, "cli.py", "import numpy as np\nnp.random.seed(0)", "numpy.random.seed is the global"),
    (check_randomness, "cli.py", "import random\nrandom.random()", "random.random is the global"),
    (check_randomness, "cli.py", "from torch import manual_seed\nmanual_seed(0)", "torch.manual_seed is the global"),
    (check_randomness, "cli.py", "import torch\ntorch.randn(2)", "torch.randn without generator="),
    (check_randomness, "cli.py", "import torch\ntorch.empty(2).normal_()", "global"),
    (check_randomness, "cli.py", "from torch import nn\nnn.init.normal_(w)", "torch.nn.init.normal_ without"),
    (check_randomness, "cli.py", "import numpy as np\nnp.random.default_rng()", "without a seed"),
    (check_docstrings, "cli.py", "x = 1", "module has no docstring"),
    (check_docstrings, "cli.py", DOC + "class A:\n    'Doc.'\n    def b(self): ...", "'b' is public"),
    (check_docstrings, "config/x.py", DOC + "@dataclass\nclass A:\n    'Doc.'\n    b: int = 0", "field 'A.b'"),
]
RIGHT = [
    (check_levels, "train/x.py", "from monoformer.train import loss\nfrom monoformer.model import attention"),
    (check_levels, "doctor.py", "from monoformer import __version__, device\nimport monoformer.config.model"),
    (check_import_form, "serve/x.py", "def f():\n    import gradio"),
    (check_import_form, "config/x.py", "import dataclasses\nfrom monoformer.config.model import ModelConfig"),
    (check_sizes, "cli.py", LONG_BODY),
    (check_names, "cli.py", "class Database:\n    pass"),
    (check_calls, "cli.py", "import json\njson.load(x)\nnumpy.load(x, allow_pickle=False)"),
    (
        check_randomness,
        "cli.py",
        "import torch, random\nrandom.Random(1).random()\ntorch.randn(2, generator=g)\nx.normal_(**k)",
    ),
    (check_randomness, "cli.py", "import torch\ntorch.Generator().manual_seed(1)\ntorch.nn.init.zeros_(w)"),
    (
        check_docstrings,
        "config/x.py",
        DOC + "@dataclass\nclass A:\n    'Doc.'\n    b: int = 0\n    'Doc.'\n    def _c(self): ...",
    ),
]


@pytest.mark.parametrize(("rule", "path", "text", "expected"), WRONG)
def test_rule_finds(rule: Callable[[Module], Iterator[str]], path: str, text: str, expected: str) -> None:
    findings = list(rule(Module(f"{PACKAGE}/{path}", text)))
    assert any(expected.replace("x.py", path) in finding for finding in findings), findings


@pytest.mark.parametrize(("rule", "path", "text"), RIGHT)
def test_rule_lets_pass(rule: Callable[[Module], Iterator[str]], path: str, text: str) -> None:
    assert not list(rule(Module(f"{PACKAGE}/{path}", text)))
