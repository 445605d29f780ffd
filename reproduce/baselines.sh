#!/usr/bin/env bash
# Ours beside Stable Diffusion's U-Net and a diffusion transformer: the same pictures, noise, parameters (within a tenth) and steps, on
# CIFAR-10 from class names and on 128x128 scenes from captions, in the latents of models/autoencoder-mini. Run once so far, with
# one seed and half of the steps, on CIFAR-10 alone (docs/results.md).
#
#   CIFAR10=data/cifar10 WEIGHTS=data/weights bash reproduce/baselines.sh     (extra: pip install 'monoformer[autoencoders]')
#
# Scenes are drawn ones alone, for the other two know no others. Nothing is done twice: the same command goes on. Ends in two tables.
# Seconds a step on one thread of a busy machine (ten steps each, median and least; an idle one is nearer to the least):
#   CIFAR-10, 54 pictures a step:       ours 2.8 (2.7), dit 2.6 (1.4), unet 8.4 (4.5)    2,000 steps each
#   scenes, 50 pictures a step (here 60): ours 4.0 (1.9), dit 5.7 (1.9), unet 10.9 (8.6)  3,265 steps each, their encoding counted
# so three seeds of all three take about a day for CIFAR-10 and two for scenes on such a thread.
set -euo pipefail
CIFAR10=${CIFAR10:-data/cifar10}   # train.parquet and test.parquet, with image and label
WEIGHTS=${WEIGHTS:-data/weights}   # cifar10_resnet56-*.th
NETWORKS=${NETWORKS:-monoformer dit unet}
SEEDS=${SEEDS:-0 1 2}
TASKS=${TASKS:-cifar10 scenes}
OUT=${OUT:-runs/baselines}
PYTHON=${PYTHON:-python}
HERE=$(dirname "$0")

SCENES=( # what reproduce/latent.toml trains, but for its other documents and its start from a language model
  --preset scenes-latent --start= --tokenizer.vocabulary 512 --train.steps 3265
  --data.describe 0 --data.edit 0 --data.question 0 --data.story 0 --sequence.row 300 --train.rows 15
)
CLASSES=(--preset cifar10 --data.files "$CIFAR10/train.parquet" --real "$CIFAR10/test.parquet" --judge "$OUT/resnet56.safetensors")

mkdir -p "$OUT"
for task in $TASKS; do
  if [ "$task" = cifar10 ]; then
    "$PYTHON" "$HERE/convert_resnet.py" "$WEIGHTS"/cifar10_resnet56-*.th "$OUT/resnet56.safetensors"
    settings=("${CLASSES[@]}")
  else
    settings=("${SCENES[@]}")
  fi
  for seed in $SEEDS; do
    for network in $NETWORKS; do
      "$PYTHON" "$HERE/../benchmarks/baselines.py" --network "$network" --seed "$seed" --out "$OUT/$task" "${settings[@]}" "$@"
    done
  done
  "$PYTHON" "$HERE/../benchmarks/baselines.py" --table --out "$OUT/$task"
done
