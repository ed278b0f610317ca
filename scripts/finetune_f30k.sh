#!/usr/bin/env bash
# Fine-tuning on Flickr30k; finetune.sh lists the settings and variables.
#
#   LOAD_PATH=PHASE2.ckpt bash scripts/finetune_f30k.sh
exec bash "$(dirname "${BASH_SOURCE[0]}")/finetune.sh" f30k "$@"
