#!/usr/bin/env bash
# Shakespeare by characters beside nanoGPT's figures: the first 90% of char-rnn's corpus is trained on, the last 10% read.
# nanoGPT reports a loss of 1.88 a character for its small run on a CPU (0.8M parameters, 2,000 steps of 768 characters).
#
#   bash reproduce/shakespeare.sh data/text/tinyshakespeare.txt [options of monoformer train]
#
# The preset has that run's shape, steps and tokens a step; here the context is 256 characters, not 64, and the optimizer Muon.
set -euo pipefail
TEXT=${1:?name the file, tinyshakespeare.txt}
shift
OUT=${OUT:-runs/shakespeare}
PYTHON=${PYTHON:-python}
PART=$(($(wc -c <"$TEXT") * 9 / 10))

mkdir -p "$OUT"
head -c "$PART" "$TEXT" >"$OUT/train.txt"
tail -c +$((PART + 1)) "$TEXT" >"$OUT/test.txt"
"$PYTHON" -m monoformer train shakespeare --folder "$OUT" --data.files "$OUT/train.txt" "$@"
"$PYTHON" -m monoformer evaluate "$OUT/model" --suite text --text.whole --text.data.files "$OUT/test.txt" --out "$OUT/scores"
"$PYTHON" - "$OUT/scores/scores.json" <<'PRINT'
import json, math, sys
(text,) = json.load(open(sys.argv[1]))["suites"]
bits = {figure["name"]: figure["value"] for figure in text["figures"]}["text_bits_per_byte"]
print(f"loss a character: {bits * math.log(2):.4f} nats")
PRINT
