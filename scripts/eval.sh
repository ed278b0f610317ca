#!/usr/bin/env bash
# Recall on one test split; eval_coco.sh (5K, and the mean of the five 1K folds) and eval_f30k.sh choose it.
#
#   LOAD_PATH=FINETUNED.ckpt bash scripts/eval.sh coco
#
# Variables: DATA_ROOT (data), LOG_DIR (result), NUM_GPUS per node (1; 0 is the CPU), LOAD_PATH (no default), and those
# of launch.sh for several nodes. Paths are relative to the root of the repository. Further arguments are passed on as
# key=value and override, e.g. scripts/eval.sh coco metrics_file=recall.json
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dataset=${1:?name the data set: coco or f30k}
shift
: "${LOAD_PATH:?set it to the checkpoint to test, e.g. LOAD_PATH=finetuned.ckpt}"

exec bash scripts/launch.sh Phase2 with task_IRTR_evaluate test_only=True beit16_base224 text_bert \
  load_path="$LOAD_PATH" datasets="['$dataset']" \
  data_root="${DATA_ROOT:-data}" log_dir="${LOG_DIR:-result}" num_gpus="${NUM_GPUS:-1}" \
  image_size=384 queue_size=11520 precision=16 "$@"
