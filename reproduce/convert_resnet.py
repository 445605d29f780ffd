"""Published CIFAR-10 residual networks (PyTorch state dicts) as a judge in safetensors.

    python reproduce/convert_resnet.py data/weights/cifar10_resnet56-4bfd9763.th runs/judges/resnet56.safetensors

The weights are read with `weights_only`, so that nothing in the file is run. With `--check TEST.parquet` the judge's
share of right answers on real pictures is printed (ResNet-56: 93.39%, as published).
"""

import argparse
import json
import pickle
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from monoformer.config.data import ParquetData
from monoformer.data.images import ParquetPictures
from monoformer.evaluate.resnet import load_resnet

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--check", type=Path, help="parquet of real pictures with labels")
    given = parser.parse_args()
    try:
        state = torch.load(given.weights, map_location="cpu", weights_only=True)["state_dict"]
    except (OSError, pickle.UnpicklingError, KeyError, TypeError, RuntimeError) as error:
        sys.exit(f"{given.weights} holds no published weights of such a network: {str(error).splitlines()[0]}")
    tensors = {name.removeprefix("module."): tensor.contiguous() for name, tensor in state.items()}
    metadata = {name: json.dumps(value) for name, value in (("classes", CLASSES), ("mean", MEAN), ("std", STD))}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, given.out, metadata)
    judge = load_resnet(given.out)
    print(given.out)
    if given.check:
        print(f"{check(judge, given.check):.2%} right")


@torch.no_grad()
def check(judge: torch.nn.Module, path: Path) -> float:
    pictures = ParquetPictures(ParquetData(files=(str(path),), caption="{label}", size=32))
    right = 0
    for first in range(0, len(pictures.rows), 250):
        rows = pictures.rows[first : first + 250]
        _, logits = judge(torch.stack([pictures.picture(row) for row in rows]))
        wanted = torch.tensor([CLASSES.index(pictures.caption(row)) for row in rows])
        right += int((logits.argmax(1) == wanted).sum())
    return right / len(pictures.rows)


if __name__ == "__main__":
    main()
