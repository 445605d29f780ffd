"""Export the pictures that a preset left out of training as a folder with captions, ready for `train finetune`.

python examples/parquet_to_folder.py emoji EMOJI.parquet runs/held-out --count 200
monoformer train finetune --from runs/emoji/model --data.root runs/held-out
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

from monoformer.config.data import MixtureData, ParquetData
from monoformer.data.images import ParquetPictures
from monoformer.document import Image
from monoformer.presets import PRESETS


def parquet_source(preset: str) -> ParquetData:
    """The preset's parquet source, whose held-out rows are asked for."""
    data = PRESETS[preset]().data
    sources = data.sources if isinstance(data, MixtureData) else (data,)
    return next(source for source in sources if isinstance(source, ParquetData))


def main() -> None:
    """Write `count` held-out pictures and metadata.csv."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("preset", choices=["emoji"])
    options.add_argument("file", help="the parquet file")
    options.add_argument("folder", type=Path, help="where the pictures go")
    options.add_argument("--count", type=int, default=200)
    given = options.parse_args()
    pictures = ParquetPictures(replace(parquet_source(given.preset), files=(given.file,)), split="test")
    given.folder.mkdir(parents=True, exist_ok=True)
    with (given.folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text"])
        for row in pictures.rows[: given.count]:
            name = f"{row:05d}.png"
            Image(pixels=pictures.picture(row)).to_pil().save(given.folder / name)
            table.writerow([name, pictures.caption(row)])
    print(f"{given.folder}: {len(pictures.rows[: given.count])} pictures and metadata.csv")


if __name__ == "__main__":
    main()
