#!/usr/bin/env bash
# Recall on the COCO test split, 5K and the mean of the five 1K folds; eval.sh lists the variables.
#
#   LOAD_PATH=FINETUNED.ckpt bash scripts/eval_coco.sh
#   LOAD_PATH=FINETUNED.ckpt bash scripts/eval_coco.sh eccv=True   # also ECCV Caption and CxC
exec bash "$(dirname "${BASH_SOURCE[0]}")/eval.sh" coco eval_folds=5 "$@"
