#!/usr/bin/env bash
# Photographs with captions, small: Flickr8k at 96x96 in latents, 36 tokens a picture. Draws from captions, captions held-out
# pictures (CIDEr-D on plain words), and finds a picture's caption among 100 by likelihood (chance: 1%).
#
#   bash reproduce/flickr8k.sh TRAIN.parquet TEST.parquet [options of monoformer train]
#
# The files have a column of pictures and one, `captions`, with a list of captions. The autoencoder is a diffusers folder or
# hub name with 8 pixels a cell; CHANNELS are those of its latents. The small one of this repository, which is the default,
# has seen drawn scenes and emoji alone, so photographs come back soft; `stabilityai/sd-vae-ft-mse` has 4 channels too.
# CIDER=1 needs the extra `evaluate`.
set -euo pipefail
TRAIN=${1:?name the parquet file to train on}
TEST=${2:?name the parquet file of held-out pictures}
shift 2
AUTOENCODER=${AUTOENCODER:-models/autoencoder-mini}
CHANNELS=${CHANNELS:-4}
COUNT=${COUNT:-256}
CIDER=${CIDER:-0}
OUT=${OUT:-runs/flickr8k}
PYTHON=${PYTHON:-python}

# In the script's folder, so that it is found from wherever this is started.
[ -d "$AUTOENCODER" ] || [ ! -d "$(dirname "$0")/../$AUTOENCODER" ] || AUTOENCODER=$(cd "$(dirname "$0")/../$AUTOENCODER" && pwd)

if [ ! -f "$OUT/model/config.json" ]; then
  "$PYTHON" -m monoformer train flickr8k --folder "$OUT" --data.files "$TRAIN" --autoencoder.path "$AUTOENCODER" \
    --model.channels "$CHANNELS" "$@"
fi
SCORES=(--captions.data.files "$TEST" --captions.data.caption "{captions}" --captions.data.size 96)
[ "$CIDER" = 1 ] || SCORES+=(--captions.no-cider)
"$PYTHON" -m monoformer evaluate "$OUT/model" --suite captions --count "$COUNT" --out "$OUT/scores" "${SCORES[@]}"

# Samples: the first captions of the held-out pictures.
"$PYTHON" - "$TEST" >"$OUT/prompts.txt" <<'END'
import sys
import datasets
rows = datasets.load_dataset("parquet", data_files=sys.argv[1], split="train").select_columns("captions")
print("\n".join(" ".join(rows[n]["captions"][0].split()) for n in range(min(12, len(rows)))))
END
mapfile -t PROMPTS <"$OUT/prompts.txt"
"$PYTHON" -m monoformer generate "$OUT/model" "${PROMPTS[@]}" --out "$OUT/drawn.png" --gallery
