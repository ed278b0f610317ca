#!/usr/bin/env bash
# Phase 1, lexicon-bottlenecked pre-training: 20 epochs of COCO, Flickr30k, CC3M and SBU, batch 800.
#
#   DATA_ROOT=data bash scripts/train_phase1.sh
#
# Variables: DATA_ROOT (data), LOG_DIR (result), NUM_GPUS per node (8), and those of launch.sh for several nodes.
# Paths are relative to the root of the repository. Further arguments are passed on as key=value and override, e.g.
# scripts/train_phase1.sh datasets='["coco"]' max_epoch=1
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

exec bash scripts/launch.sh Phase1 with task_Text_MAE_Contrastive_train beit16_base224 text_bert vit_randaug \
  datasets='["coco", "f30k", "gcc", "sbu"]' \
  data_root="${DATA_ROOT:-data}" log_dir="${LOG_DIR:-result}" num_gpus="${NUM_GPUS:-8}" \
  image_size=224 batch_size=800 per_gpu_batchsize=100 max_epoch=20 learning_rate=5e-5 precision=16 "$@"
