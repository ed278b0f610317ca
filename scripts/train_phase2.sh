#!/usr/bin/env bash
# Phase 2, momentum lexicon-contrastive pre-training: 40,000 steps of batch 2,880, half of them at 112 pixels.
#
#   LOAD_PATH=PHASE1.ckpt bash scripts/train_phase2.sh
#
# Variables: DATA_ROOT (data), LOG_DIR (result), NUM_GPUS per node (8), LOAD_PATH (no default), and those of launch.sh
# for several nodes. Paths are relative to the root of the repository. Further arguments are passed on as key=value and
# override, e.g. scripts/train_phase2.sh max_steps=1000
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

: "${LOAD_PATH:?set it to the checkpoint of Phase 1, e.g. LOAD_PATH=phase1.ckpt bash scripts/train_phase2.sh}"

exec bash scripts/launch.sh Phase2 with task_contrastive_train beit16_base224 text_bert vit_randaug \
  load_path="$LOAD_PATH" datasets='["coco", "f30k", "gcc", "sbu"]' \
  data_root="${DATA_ROOT:-data}" log_dir="${LOG_DIR:-result}" num_gpus="${NUM_GPUS:-8}" \
  image_size=224 DR=True queue_size=11520 \
  batch_size=2880 per_gpu_batchsize=90 max_steps=40000 learning_rate=5e-5 precision=16 "$@"
