#!/usr/bin/env bash
# Fine-tuning on one data set at 384 pixels: 10 epochs, batch 1,536. finetune_coco.sh and finetune_f30k.sh name it.
#
#   LOAD_PATH=PHASE2.ckpt bash scripts/finetune.sh coco
#
# Variables: DATA_ROOT (data), LOG_DIR (result), NUM_GPUS per node (8), LOAD_PATH (no default), and those of launch.sh
# for several nodes. Paths are relative to the root of the repository. Further arguments are passed on as key=value and
# override, e.g. scripts/finetune.sh coco per_gpu_batchsize=12
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dataset=${1:?name the data set: coco or f30k}
shift
: "${LOAD_PATH:?set it to the checkpoint of Phase 2, e.g. LOAD_PATH=phase2.ckpt}"

exec bash scripts/launch.sh Phase2 with task_contrastive_train beit16_base224 text_bert vit_randaug \
  load_path="$LOAD_PATH" datasets="['$dataset']" get_recall_metric=True \
  data_root="${DATA_ROOT:-data}" log_dir="${LOG_DIR:-result}" num_gpus="${NUM_GPUS:-8}" \
  image_size=384 DR=False queue_size=11520 \
  batch_size=1536 per_gpu_batchsize=24 max_epoch=10 learning_rate=5e-5 precision=16 "$@"
