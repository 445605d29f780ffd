"""A small residual network that classifies 32x32 pictures (arXiv 1512.03385, section 4.2), as a judge of drawn ones.

A file of it is safetensors with the tensors conv1, bn1, layer1..3.N.{conv1,bn1,conv2,bn2} and linear; its metadata
holds `classes`, a JSON list of names, and `mean` and `std`, JSON lists of three numbers that pixels in [0, 1] were
normalised by. `reproduce/convert_resnet.py` makes one from published CIFAR-10 weights.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
"""Channels of the three stages; the second and third begin with a step of 2."""


class ResNetBlock(nn.Module):
    """Two convolutions beside an identity; where the size halves, that one skips pixels and gains empty channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h / stride, w / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        more = (y.shape[1] - x.shape[1]) // 2
        identity = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, more, more))
        return F.relu(y + identity)


class ResNet(nn.Module):
    """6 n + 2 layers; the features are the 64 averages before the last one."""

    def __init__(self, blocks: int, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> None:
        """`blocks`: n, residual blocks in each of the three stages."""
        super().__init__()
        self.classes = tuple(classes)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(ResNetBlock(inputs if number == 0 else outputs, outputs) for number in range(blocks)))
            for inputs, outputs in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        )
        self.linear = nn.Linear(WIDTHS[-1], len(self.classes))
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, 3, H, W) -> features (N, 64), logits (N, classes)."""
        x = (pixels.float() / 255 - self.get_buffer("mean")) / self.get_buffer("std")
        x = F.relu(self.bn1(self.conv1(x)))
        features: Tensor = self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))
        return features, self.linear(features)


def load_resnet(path: str | Path) -> ResNet:
    """The judge in a safetensors file. Raises ValueError when it is missing or of another form."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        classes, mean, std = (json.loads(metadata[name]) for name in ("classes", "mean", "std"))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the judge {path} cannot be read ({error}); reproduce/convert_resnet.py makes one") from None
    except (KeyError, json.JSONDecodeError):
        raise ValueError(f"the metadata of {path} must hold classes, mean and std as JSON") from None
    numbers = [int(found[1]) for name in tensors if (found := re.match(r"layer1\.(\d+)\.", name))]
    network = ResNet(max(numbers, default=0) + 1, classes, mean, std)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} holds another network: {str(error).splitlines()[1].strip()}") from None
    return network.eval()
