"""The rooms of the package and the rules between them, read from the source text (nothing is imported).

Each rule is a function from one module to findings `file:line: what is wrong; what to do`. test_architecture.py applies
them to the package, and to small wrong modules.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

PACKAGE = "monoformer"

LEVELS = {
    0: ["config", "hub", "files"],
    1: [
        "presets",
        "tokenizer",
        "document",
        "autoencoder",
        "vision",
        "diffusion",
        "batch",
        "randomness",
        "device",
        "card",
        "sweep",
    ],
    2: ["chat", "dropping", "packing", "gallery", "framing", "arguments"],
    3: ["sequence", "model"],
    4: ["pretrained", "data", "anatomy"],
    5: ["train", "generate"],
    6: ["pipeline"],
    7: ["evaluate", "serve", "doctor"],
    8: ["cli"],
    9: ["__main__"],
}
"""Rooms (modules and folders directly under the package) by level; a room imports from strictly lower levels only."""

LEVEL = {room: level for level, rooms in LEVELS.items() for room in rooms}

SEES_ONLY = {
    "batch": ["config.model"],
    "model": ["batch", "config.model"],  # the network can be lifted out with these two files
    "diffusion": ["config.diffusion"],  # and diffusion with this one
    "serve": ["pipeline", "generate", "document", "config", "anatomy"],
}
"""Rooms that may import less than their level would let them."""

NEVER_SEES = {"data": ["model"]}
"""Rooms of lower levels that a room must not know."""

OPTIONAL = {
    *("diffusers", "wandb", "tensorboard", "gradio", "fastapi", "uvicorn", "prometheus_client"),
    *("lm_eval", "torch_fidelity", "pycocoevalcap", "peft", "torchao", "ray"),
}
"""Packages of the extras: `pip install monoformer` leaves them out, so only a function may import them."""

PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch.load", "torch.save"}

VAGUE_NAMES = {"utils", "util", "common", "base", "helper", "helpers", "misc"}

FILE_LINES, FUNCTION_LINES = 300, 50

TORCH_DRAWS = {
    *("rand", "randn", "randint", "rand_like", "randn_like", "randint_like"),
    *("randperm", "normal", "bernoulli", "multinomial", "poisson"),
}
METHOD_DRAWS = {
    *("normal_", "uniform_", "bernoulli_", "exponential_", "random_", "geometric_", "cauchy_", "log_normal_"),
}
GLOBAL_STATE = {
    *("torch.manual_seed", "torch.seed", "torch.initial_seed", "torch.get_rng_state", "torch.set_rng_state"),
    *("torch.default_generator", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.mps.manual_seed"),
    *("torch.cuda.get_rng_state", "torch.cuda.set_rng_state", "torch.mps.set_rng_state"),
    *("transformers.set_seed", "torch.get_default_generator"),
}
OWN_GENERATORS = {
    *("random.Random", "numpy.random.default_rng", "numpy.random.Generator", "numpy.random.SeedSequence"),
    *("numpy.random.PCG64", "numpy.random.Philox", "numpy.random.BitGenerator"),
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file of the package: its path from the root of the project, with slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def room(self) -> str:
        """The package's direct child that holds this file; '' for the package's own __init__."""
        name = self.path.split("/")[1].removesuffix(".py")
        return "" if name == "__init__" else name

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def imports(self) -> list[tuple[ast.stmt, str]]:
        """Every import, wherever it stands, as (statement, dotted name); `from a import b` gives `a.b`."""
        found: list[tuple[ast.stmt, str]] = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found += [(node, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found += [(node, f"{node.module}.{alias.name}") for alias in node.names]
        return found

    @cached_property
    def names(self) -> dict[str, str]:
        """What the imported names of this file stand for: `np` -> `numpy`, `randn` -> `torch.randn`."""
        meaning = {}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.split(".")[0]
                    meaning[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        return meaning

    def dotted(self, node: ast.AST) -> str:
        """The full name of an expression such as `np.random.seed`; '' where it does not start at an import."""
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.names:
            return ""
        return ".".join([self.names[node.id], *reversed(parts)])

    def finding(self, node: ast.AST | int, message: str) -> str:
        return f"{self.path}:{node if isinstance(node, int) else getattr(node, 'lineno', 1)}: {message}"


def within(name: str, prefix: str) -> bool:
    """Whether the dotted name is the prefix or inside it."""
    return name == prefix or name.startswith(prefix + ".")


def check_levels(module: Module) -> Iterator[str]:
    """A module imports only from a strictly lower level or from its own room; the package's __init__ is exempt."""
    if not module.room:
        return
    if module.room not in LEVEL:
        yield module.finding(1, f"room '{module.room}' has no level; add it to LEVELS in tests/architecture.py")
        return
    for node, full in module.imports:
        if within(full, PACKAGE):
            yield from (module.finding(node, message) for message in judge_import(module.room, full))


def judge_import(room: str, full: str) -> Iterator[str]:
    """What is wrong with a file of `room` importing `full`, a dotted name that starts with the package's."""
    name = full.removeprefix(PACKAGE).removeprefix(".")
    other = name.split(".")[0]
    if other == room or name == "__version__":
        return
    if not other:
        yield f"'import {PACKAGE}' hides which room is used; import from the room's own module"
    elif other not in LEVEL:
        yield f"'{full}': '{other}' has no level; if it is a room, add it to LEVELS, else import it from its own module"
    elif LEVEL[other] > LEVEL[room]:
        yield f"'{room}' (level {LEVEL[room]}) imports '{other}' (level {LEVEL[other]}); import only lower levels"
    elif LEVEL[other] == LEVEL[room]:
        yield f"'{room}' imports '{other}', its sibling on level {LEVEL[room]}; move what they share to a lower level"
    elif room in SEES_ONLY and not any(within(name, allowed) for allowed in SEES_ONLY[room]):
        yield f"'{room}' imports '{name}', but may see only {', '.join(SEES_ONLY[room])}"
    elif other in NEVER_SEES.get(room, []):
        yield f"'{room}' imports '{name}', but must not know '{other}'"


def check_import_form(module: Module) -> Iterator[str]:
    """Imports are absolute and visible; optional packages only in functions; config uses the standard library only."""
    inside = {id(node) for function in module.nodes if isinstance(function, Function) for node in ast.walk(function)}
    for node in module.nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            yield module.finding(node, f"relative import; write 'from {PACKAGE}...'")
        elif isinstance(node, ast.Call) and module.room and module.dotted(node.func) == "importlib.import_module":
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if any(within(str(name), PACKAGE) for name in names):
                yield module.finding(node, "import_module of our own package hides the room from this test")
    for statement, full in module.imports:
        top = full.split(".")[0]
        if top in OPTIONAL and id(statement) not in inside:
            yield module.finding(statement, f"'{top}' is optional; import it in the function that needs it")
        if module.room == "config" and top not in sys.stdlib_module_names and not within(full, f"{PACKAGE}.config"):
            yield module.finding(statement, f"'{top}' in config/; configurations use the standard library only")


def check_sizes(module: Module) -> Iterator[str]:
    """A file has at most 300 lines, a function at most 50 without its docstring."""
    count = len(module.text.splitlines())
    if count > FILE_LINES:
        yield module.finding(1, f"{count} lines, more than {FILE_LINES}; split the file by noun")
    for node in module.nodes:
        if isinstance(node, Function):
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            length = len(lines_of(node)) - len(lines_of(docstring))
            if length > FUNCTION_LINES:
                yield module.finding(node, f"'{node.name}' has {length} lines, more than {FUNCTION_LINES}; split it")


def lines_of(node: ast.stmt | None) -> range:
    """The lines that a statement covers."""
    return range(node.lineno, (node.end_lineno or node.lineno) + 1) if node else range(0)


def check_names(module: Module) -> Iterator[str]:
    """No vague names: `utils`, `common`, `base`, `...Manager`, `...Helper`."""
    for part in module.path.removesuffix(".py").split("/")[1:]:
        if VAGUE_NAMES.intersection(part.split("_")):
            yield module.finding(1, f"a module named '{part}'; name it by what it holds")
    for node in module.nodes:
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Manager", "Helper", "Utils", "Base")):
            yield module.finding(node, f"class '{node.name}'; name it by what it is")


def check_calls(module: Module) -> Iterator[str]:
    """No hasattr, no pickles."""
    for node in module.nodes:
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "hasattr":
                yield module.finding(
                    node, "hasattr; state is explicit, so give the attribute a value or match on the type"
                )
            if any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords):
                yield module.finding(node, "allow_pickle; files from outside are never unpickled")
        if isinstance(node, ast.Attribute) and module.dotted(node) in PICKLES:
            yield module.finding(
                node, f"{module.dotted(node)} is a pickle; use safetensors (weights) or DCP (training)"
            )
    for statement, full in module.imports:
        if full in PICKLES or full.split(".")[0] in PICKLES:
            yield module.finding(statement, f"{full} is a pickle; use safetensors (weights) or DCP (training)")


def check_randomness(module: Module) -> Iterator[str]:
    """Every draw names its generator; the global ones of torch, numpy and random are never used."""
    advice = "use monoformer.randomness, or pass a generator"
    for node in module.nodes:
        if isinstance(node, ast.Attribute | ast.Name) and uses_global_generator(module.dotted(node)):
            yield module.finding(node, f"{module.dotted(node)} is the global random generator; {advice}")
        if not isinstance(node, ast.Call):
            continue
        full = module.dotted(node.func)
        if full in ("random.Random", "numpy.random.default_rng") and not (node.args or node.keywords):
            yield module.finding(node, f"{full}() without a seed; give one")
        draws = within(full, "torch") and full.rsplit(".")[-1] in TORCH_DRAWS and full.count(".") == 1
        draws |= within(full, "torch.nn.init") and full.endswith(("normal_", "uniform_", "orthogonal_", "sparse_"))
        draws |= not full and isinstance(node.func, ast.Attribute) and node.func.attr in METHOD_DRAWS
        if draws and not any(word.arg in ("generator", None) for word in node.keywords):
            name = full or f".{getattr(node.func, 'attr', '')}"
            yield module.finding(node, f"{name} without generator= draws from the global random generator; {advice}")


def uses_global_generator(full: str) -> bool:
    """Whether the dotted name is a function of, or a handle on, a global generator."""
    if full in GLOBAL_STATE or within(full, "torch.random") or full.startswith("torch.cuda.random."):
        return True
    return full.startswith(("random.", "numpy.random.")) and not any(within(full, own) for own in OWN_GENERATORS)


def check_docstrings(module: Module) -> Iterator[str]:
    """Every module, public class, function and method has one; so has every field of a configuration."""
    if ast.get_docstring(module.tree) is None:
        yield module.finding(1, "the module has no docstring; say what it does and what it does not know")
    yield from check_members(module, module.tree.body)
    for node in module.nodes:
        if module.room == "config" and isinstance(node, ast.ClassDef):
            yield from check_fields(module, node)


def check_members(module: Module, body: list[ast.stmt]) -> Iterator[str]:
    """Docstrings of the public classes, functions and methods in `body`; functions inside functions are private."""
    for node in body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            exempt = any(mark.endswith(("overload", ".setter", ".register")) for mark in marks)
            if ast.get_docstring(node) is None and not exempt:
                yield module.finding(node, f"'{node.name}' is public and has no docstring")
            if isinstance(node, ast.ClassDef):
                yield from check_members(module, node.body)


def check_fields(module: Module, node: ast.ClassDef) -> Iterator[str]:
    """Each field of a dataclass is followed by its docstring."""
    if not any("dataclass" in ast.unparse(mark) for mark in node.decorator_list):
        return
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
            if "ClassVar" not in ast.unparse(statement.annotation) and not isinstance(described, str):
                yield module.finding(statement, f"field '{node.name}.{statement.target.id}' has no docstring below it")


RULES = (check_levels, check_import_form, check_sizes, check_names, check_calls, check_randomness, check_docstrings)
