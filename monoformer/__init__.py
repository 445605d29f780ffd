"""MonoFormer: one transformer that writes text by autoregression and draws images by diffusion.

The names below are loaded when they are first used, so that `import monoformer` and the command line's help are fast.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monoformer.document import Document, Image, Text
    from monoformer.pipeline import Pipeline

__all__ = ["Document", "Image", "Pipeline", "Text", "__version__"]

_HOMES = {"Document": "document", "Image": "document", "Text": "document", "Pipeline": "pipeline"}

try:
    __version__ = version("monoformer")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'monoformer' has no attribute {name!r}")
    value: object = getattr(import_module(f"monoformer.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
