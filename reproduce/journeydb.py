"""JourneyDB as it is given out (a file of annotations, a folder of pictures) into the parquet files that presets read.

    python reproduce/journeydb.py JOURNEYDB/train_anno.jsonl JOURNEYDB/images data/journeydb --rows 10000

Columns: image (the file's bytes) and prompt. Lines that cannot be read and pictures that are missing are left out and
counted; a finished file is not written again.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {"image": {"_type": "Image"}, "prompt": {"dtype": "string", "_type": "Value"}}
SCHEMA = pa.schema(
    [("image", PICTURE), ("prompt", pa.string())],
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)


def read(annotations: Path, images: Path, missing: list[str]) -> Iterator[dict[str, object]]:
    """Rows in the order of the file."""
    with annotations.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                said = json.loads(line)
                file, prompt = images / said["img_path"], said["prompt"]
                yield {"image": {"bytes": file.read_bytes(), "path": file.name}, "prompt": prompt}
            except (ValueError, KeyError, OSError) as error:
                missing.append(f"line {number}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=10_000, help="pictures in a file")
    given = parser.parse_args()
    if not given.annotations.is_file():
        sys.exit(f"there is no file {given.annotations}; name JourneyDB's annotations")
    given.out.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    rows, count = read(given.annotations, given.images, missing), 0
    for number in itertools.count():
        if not (part := list(itertools.islice(rows, given.rows))):
            break
        file = given.out / f"{number:05d}.parquet"
        if not file.is_file():
            pq.write_table(pa.Table.from_pylist(part, schema=SCHEMA), file.with_suffix(".incomplete"))
            file.with_suffix(".incomplete").rename(file)
        count += len(part)
    if not count:
        sys.exit(f"no picture of {given.annotations} is in {given.images}: {missing[0] if missing else 'no line'}")
    print(f"{given.out}: {count} pictures; {len(missing)} lines left out{': ' + missing[0] if missing else ''}")


if __name__ == "__main__":
    main()
