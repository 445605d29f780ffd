"""Write the golden files anew: python -m tests.golden.make. Only when a change is meant to move them; say why.

`version-1/` is a model folder in format version 1 and must load for ever; `expected.json` holds what it makes, and the
losses of 20 training steps.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from monoformer.pipeline import Pipeline
from monoformer.pretrained import save_pretrained
from tests import tiny

HERE = Path(__file__).parent
FOLDER = HERE / "version-1"
EXPECTED = HERE / "expected.json"
PROMPT = "a large red circle"


def made(pipeline: Pipeline) -> dict[str, Any]:
    """What the folder writes and draws."""
    picture = pipeline.generate_images(PROMPT, size=(8, 8), seed=3)[0]
    return {"text": pipeline.generate_text("the", seed=3, max_tokens=12)[0], "picture": list(picture.tobytes())}


def losses(folder: Path) -> list[dict[str, float]]:
    """Losses of 20 steps of a tiny run on random documents, text and images."""
    config = tiny.run_config(folder, train={"steps": 20, "rows": 4, "pass_rows": 4})
    trainer = tiny.trainer(config)
    steps = [trainer.train_step([next(trainer.parts.loader)]) for _ in range(20)]
    trainer.parts.loader.close()
    return steps


def main() -> None:
    """Write both."""
    save_pretrained(FOLDER, tiny.pretrained(), card="A random model: it must load for ever.\n")
    with tempfile.TemporaryDirectory() as folder:
        expected = {**made(Pipeline.from_pretrained(FOLDER, device="cpu")), "losses": losses(Path(folder))}
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
