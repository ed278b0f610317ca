#!/usr/bin/env bash
# Fine-tuning on COCO; finetune.sh lists the settings and variables.
#
#   LOAD_PATH=PHASE2.ckpt bash scripts/finetune_coco.sh
exec bash "$(dirname "${BASH_SOURCE[0]}")/finetune.sh" coco "$@"
