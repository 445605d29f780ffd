#!/usr/bin/env bash
# Checks and times everything on a GPU, in one command: FlexAttention = SDPA, training, drawing, writing, both.
#   bash benchmarks/gpu.sh             every line of JSON also goes to runs/gpu/results.jsonl
#   SIZE=tiny DEVICE=cpu bash benchmarks/gpu.sh      the same lines in a minute on a CPU, to try the script
# PYTHON names the interpreter (default: .venv/bin/python, else python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
DEVICE=${DEVICE:-cuda}
SIZE=${SIZE:-full}
OUT=${OUT:-runs/gpu}
export PYTHONPATH=${PYTHONPATH:-.}
mkdir -p "$OUT"
: > "$OUT/results.jsonl"

failed=0
measure() { # measure SCRIPT ARGUMENTS: run it, keep its last line; a failure is told, and the rest goes on
  echo "== $*"
  if "$PYTHON" "benchmarks/$1.py" --device "$DEVICE" "${@:2}" > "$OUT/$1.txt" 2> "$OUT/$1.err"; then
    cat "$OUT/$1.txt"
    tail -n 1 "$OUT/$1.txt" | sed "s/^{/{\"benchmark\": \"$1\", /" >> "$OUT/results.jsonl"
  else
    cat "$OUT/$1.txt"; tail -n 5 "$OUT/$1.err"; failed=1
  fi
}

"$PYTHON" -m monoformer doctor
if [ "$SIZE" = tiny ]; then
  NETWORK=(--width 64 --layers 2 --heads 2 --kv-heads 1 --mlp-width 128 --vocabulary 512)
  measure attention --rows 1 --tokens 256 --heads 2 --kv-heads 1 --head-width 32 --patches 64 --repeats 1
  measure train_step "${NETWORK[@]}" --latent 16 --steps 2
  measure denoise "${NETWORK[@]}" --latent 8 --pictures 2 --steps 3 --long-tokens 40
  measure decode "${NETWORK[@]}" --batches 1 2 --tokens 8 --no-compile
  measure engine "${NETWORK[@]}" --latent 8 --requests 4 --tokens 8 --steps 3 --memory-requests 40
else
  SMALL=(--width 1024 --layers 24 --heads 16 --kv-heads 16 --mlp-width 2816 --vocabulary 32000)   # transfusion-0.37b
  LARGE=(--width 2048 --layers 22 --heads 32 --kv-heads 4 --mlp-width 5632 --vocabulary 32000)    # MonoFormer
  measure attention
  measure attention --bf16
  measure attention --bf16 --tokens 4096 --patches 1024 --rows 8
  measure train_step "${SMALL[@]}" --sequences 32 --precision bf16
  measure train_step "${LARGE[@]}" --sequences 16 --precision bf16
  measure memory --precision bf16
  for precision in fp32 bf16; do
    measure denoise "${LARGE[@]}" --precision $precision
    measure denoise "${LARGE[@]}" --cases same different --pictures 64 --precision $precision
    measure decode "${LARGE[@]}" --batches 1 8 64 --precision $precision --no-compile
    measure decode "${LARGE[@]}" --batches 1 8 64 --precision $precision
    measure engine "${LARGE[@]}" --precision $precision
  done
fi
echo "all figures: $OUT/results.jsonl"
exit $failed
