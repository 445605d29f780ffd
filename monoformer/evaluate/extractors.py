"""Networks that turn pictures into features, each with a name that stands in every figure made from it.

Accepted are Inception of torch-fidelity, the classifiers of `resnet.py` (safetensors), and TorchScript files: these are
programs, so they run only when the user says that the file is trusted. Exported programs (.pt2) are read by
unpickling and are refused.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from monoformer.config.evaluate import ImageScores
from monoformer.evaluate.digests import digest_files
from monoformer.evaluate.resnet import load_resnet

Network: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""uint8 (N, 3, H, W) -> features (N, F), logits (N, classes) where it classifies."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network of features."""

    name: str
    """What its figures begin with."""
    digest: str
    """Of its weights: features are kept under it."""
    network: Network
    is_inception: bool = False
    """Whether a distance on its features may be called FID."""

    @torch.no_grad()
    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 (N, 3, H, W) -> features (N, F), logits (N, classes) or None, fp32 on the CPU."""
        features, logits = self.network(pixels)
        return features.float().cpu(), None if logits is None else logits.float().cpu()


def load_extractor(config: ImageScores, *, device: torch.device) -> Extractor:
    """The extractor that the scores name. Raises ValueError for one that is missing, or not to be trusted."""
    if config.extractor == "inception":
        return load_inception(config.weights, trust=config.trust, device=device)
    path = Path(config.extractor)
    if not path.is_file():
        raise ValueError(f"the extractor {config.extractor!r} is neither 'inception' nor a file; check the path")
    if path.suffix == ".safetensors":
        judge = load_resnet(path).to(device)
        return Extractor(name=path.stem, digest=digest_files([path]), network=lambda pixels: judge(pixels.to(device)))
    if path.suffix == ".pt2":
        raise ValueError(f"{path} is an exported program, which is read by unpickling; give a TorchScript file instead")
    return load_script(path, trust=config.trust, device=device)


def load_inception(weights: str, *, trust: bool, device: torch.device) -> Extractor:
    """The network of published FIDs, ported from TensorFlow, through torch-fidelity: 2048 features, unbiased logits."""
    if weights and not Path(weights).is_file():
        raise ValueError(f"there is no file of Inception weights {weights!r}; leave it out to download them")
    if weights and not trust:
        raise ValueError(f"torch-fidelity reads {weights} by unpickling; if you trust that file, add --images.trust")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        raise ValueError(
            f"Inception needs torch-fidelity and the torchvision of your torch ({error}); install them with: "
            f"pip install 'monoformer[evaluate]', or give another extractor"
        ) from None
    path = weights or None
    network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=path)
    network = network.to(device)
    digest = digest_files([Path(weights)]) if weights else "torch-fidelity"
    return Extractor(
        name="inception", digest=digest, network=lambda pixels: network(pixels.to(device)), is_inception=True
    )


def load_script(path: Path, *, trust: bool, device: torch.device) -> Extractor:
    """A TorchScript file: uint8 (N, 3, H, W) -> features (N, F), or features and logits (N, classes)."""
    if not trust:
        raise ValueError(f"{path} holds a program; if you trust it, add --images.trust")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch would rather export, but reads those files by unpickling
            module = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{path} is no TorchScript file: {str(error).splitlines()[0]}") from None

    def network(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        found = module(pixels.to(device))
        return found if isinstance(found, tuple) else (found, None)

    return Extractor(name=path.stem, digest=digest_files([path]), network=network)
