#!/usr/bin/env bash
# Recall on the Flickr30k test split; eval.sh lists the variables.
#
#   LOAD_PATH=FINETUNED.ckpt bash scripts/eval_f30k.sh
exec bash "$(dirname "${BASH_SOURCE[0]}")/eval.sh" f30k "$@"
