#!/usr/bin/env bash
# From TinyLlama to a text-to-image MonoFormer with the paper's mixture: JourneyDB and UltraChat as 9 : 1. Reported: a commonsense
# average of 51.12 beside TinyLlama's 52.97 (paper, table 2); no FID. Not run here: 1.1 billion parameters on many GPUs.
#
#   JOURNEYDB=folder ULTRACHAT=file.jsonl bash reproduce/tinyllama.sh [options of monoformer train]
#
# Every setting stands below as an option, also where the preset monoformer-t2i has the same; the mark says where it is from:
# P paper, C released configuration and scripts, - said by neither (what is taken is the preset's, docs/paper-to-code.md).
set -euo pipefail
JOURNEYDB=${JOURNEYDB:?name the folder that holds train_anno.jsonl and images/}
ULTRACHAT=${ULTRACHAT:?name the JSON lines of UltraChat}
LLAMA=${LLAMA:-TinyLlama/TinyLlama-1.1B-Chat-v1.0} # P
AUTOENCODER=${AUTOENCODER:-stabilityai/sd-vae-ft-ema} # P: Stable Diffusion's; -: which of -ema and -mse
TASKS=${TASKS:-}                                   # folder of the seven tasks' files (docs/evaluate.md); empty: not scored
PROMPT=${PROMPT:-Please generate an image of a lighthouse at dawn}
OUT=${OUT:-runs/tinyllama}
PYTHON=${PYTHON:-python}
LAUNCH=${LAUNCH:-$PYTHON -m monoformer}            # several processes: LAUNCH="torchrun --nproc-per-node 8 -m monoformer"

"$PYTHON" "$(dirname "$0")/journeydb.py" "$JOURNEYDB/train_anno.jsonl" "$JOURNEYDB/images" "$OUT/journeydb"

SETTINGS=(
  --train.optimizer.rate 1e-4             # P: AdamW, constant
  --train.schedule constant --train.warmup 0 # P
  --train.optimizer.weight-decay 0        # P
  --train.optimizer.betas 0.9 0.999       # C: PyTorch's
  --train.clip 2                          # C
  --train.steps 500000                    # C
  --train.rows 336                        # P: 1024 documents a step, of about 330 tokens each
  --train.text-weight 0.01 --train.image-weight 1 # C; the paper's loss is a plain sum
  --sequence.no-text-loss-in-image-documents # C
  --sequence.drop-text 0.1                # P
  --data.weights 0.9 0.1                  # P
  --data.sources.0.caption "Please generate an image of {prompt}" # C
  --data.sources.0.draw 1 --data.sources.0.describe 0 # C
  --model.patch 2                         # P
  --model.time projected_token            # C
  --model.learned-variance --diffusion.variance learned # C
  --diffusion.steps 1000 --diffusion.betas linear --diffusion.prediction eps # P
  --autoencoder.path "$AUTOENCODER"
)
# - the EMA's decay is the paper's 0.9999, warmed up here; - the sampler, its steps and the guidance of its pictures; - how long
# conversations are cut (C cuts at 512 tokens, ours ends after an answer); - the precision (C: bf16, gradients in fp32); - the seed.
# shellcheck disable=SC2086
$LAUNCH train monoformer-t2i --from "$LLAMA" --folder "$OUT" --data.sources.0.files "$OUT"/journeydb/*.parquet \
  --data.sources.1.files "$ULTRACHAT" "${SETTINGS[@]}" "$@"

"$PYTHON" -m monoformer generate "$OUT/model" "$PROMPT" --out "$OUT/drawn.png"
if [ -n "$TASKS" ]; then
  "$PYTHON" -m monoformer evaluate "$OUT/model" --suite forgetting --out "$OUT/scores" \
    --forgetting.before "$LLAMA" --forgetting.tasks.folder "$TASKS"
fi
