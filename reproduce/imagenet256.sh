#!/usr/bin/env bash
# MonoFormer's ImageNet result from its released weights: convert, draw 50,000 pictures, score. Expected: FID 2.57, IS
# 272.6, precision 0.84, recall 0.56 (paper). Not run here: it needs the weights and a GPU. How the published folder is laid
# out could not be seen either; taken is what the released code saves, safetensors or a pickle of weights alone.
#
#   bash reproduce/imagenet256.sh                    what is finished is skipped, what was stopped goes on
#   OFFICIAL=folder REFERENCE=folder COUNT=8 STEPS=2 ... bash reproduce/imagenet256.sh      at any other size
#
# From the paper:          guidance 1.5; 256x256; Stable Diffusion's autoencoder; averaged weights (0.9999); "Please generate an
#                          image of {class}."
# From the released code:  ancestral DDPM on linear betas 1e-4..2e-2, learned variance; guidance on 3 of 4 channels; sd-vae-ft-mse;
#                          50,000 pictures into an .npz for ADM's suite; each class's label in data/imagenet_labels.json.
# Said by neither:         the steps behind the reported FID (the released script has 20, with guidance 4 and 10,000 pictures; we take
#                          the chain's customary 250), the seeds, the order of classes (ours: in turn, 50 of each), the precision
#                          (ours: bf16 on a GPU), which autoencoder of -ema and -mse.
set -euo pipefail
OFFICIAL=${OFFICIAL:-data/MonoFormer_ImageNet_256} # the checkpoint's folder; fetched from the hub if it is not there
TOKENIZER=${TOKENIZER:-}                           # folder or hub name; empty: the checkpoint's, if it has one (else prompts are token numbers)
AUTOENCODER=${AUTOENCODER:-stabilityai/sd-vae-ft-mse}
LABELS=${LABELS:-data/imagenet_labels.json}        # data/imagenet_labels.json of the official repository
REFERENCE=${REFERENCE:-data/VIRTUAL_imagenet256_labeled.npz} # of ADM's evaluation suite
EXTRACTOR=${EXTRACTOR:-inception}                  # only a distance on Inception is called FID
COUNT=${COUNT:-50000}
STEPS=${STEPS:-250}
GUIDANCE=${GUIDANCE:-1.5}
CHANNELS=${CHANNELS:-3}
BATCH=${BATCH:-64}
PROCESSES=${PROCESSES:-1} # GPUs that draw, each its share of the pictures
OUT=${OUT:-runs/imagenet256}
PYTHON=${PYTHON:-python}

mkdir -p "$OUT"
for file in "$LABELS" "$REFERENCE"; do
  [ -e "$file" ] || { echo "there is no $file; the first lines of this script say what it is" >&2; exit 2; }
done

if [ ! -f "$OUT/model/config.json" ]; then
  if [ ! -d "$OFFICIAL" ] || [ -d "$OFFICIAL/.cache/huggingface" ]; then # a download that was stopped goes on
    hf download MonoFormer/MonoFormer_ImageNet_256 --local-dir "$OFFICIAL"
  fi
  WEIGHTS=$OFFICIAL
  [ -d "$OFFICIAL/ema" ] && WEIGHTS=$OFFICIAL/ema # its training code keeps the averaged weights there
  if [ ! -f "$WEIGHTS/model.safetensors" ] && [ -f "$WEIGHTS/pytorch_model.bin" ]; then # what its training script saves
    "$PYTHON" - "$WEIGHTS" <<'END'
import sys
import torch
from safetensors.torch import save_file
weights = torch.load(f"{sys.argv[1]}/pytorch_model.bin", weights_only=True)
save_file({name: value.clone() for name, value in weights.items()}, f"{sys.argv[1]}/model.safetensors", {"format": "pt"})
END
  fi
  OPTIONS=(--autoencoder "$AUTOENCODER")
  [ -z "$TOKENIZER" ] && [ -f "$OFFICIAL/tokenizer_config.json" ] && TOKENIZER=$OFFICIAL
  [ -n "$TOKENIZER" ] && OPTIONS+=(--tokenizer "$TOKENIZER")
  "$PYTHON" -m monoformer convert "$WEIGHTS" "$OUT/model" "${OPTIONS[@]}"
fi

# One prompt a class, in the order of the classes, which is that of the file and of its synsets' names.
"$PYTHON" - "$LABELS" > "$OUT/prompts.txt" <<'END'
import json, sys
names = json.load(open(sys.argv[1], encoding="utf-8"))
for synset in sorted(names):
    print(f"Please generate an image of {names[synset]['label']}.")
END

SAMPLING=(--sampling.sampler ddpm --sampling.steps "$STEPS" --sampling.guidance "$GUIDANCE" --sampling.guided-channels "$CHANNELS")
DRAW=("$PYTHON" -m monoformer)
[ "$PROCESSES" -gt 1 ] && DRAW=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$PROCESSES" -m monoformer)
"${DRAW[@]}" generate "$OUT/model" --prompts "$OUT/prompts.txt" --num "$COUNT" --chunk "$BATCH" --out "$OUT/pictures" "${SAMPLING[@]}"

"$PYTHON" -m monoformer evaluate "$OUT/model" --suite images --out "$OUT/scores" --batch "$BATCH" \
  --images.count "$COUNT" --images.splits $((COUNT < 10 ? COUNT : 10)) --images.drawn "$OUT/pictures/pictures.npz" --images.reference "$REFERENCE" \
  --images.extractor "$EXTRACTOR" --images.cache "$OUT/references" "${SAMPLING[@]}"
cat "$OUT/scores/scores.md"
