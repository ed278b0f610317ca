#!/usr/bin/env bash
# Recall on the long-text benchmark: DCI, IIW, ShareGPT4V and Urban1k (docs/LONG_TEXT.md describes their layouts).
#
#   MODEL=model_folder DCI=dci IIW=iiw bash scripts/eval_long_text.sh
#   MODEL=open_clip:ViT-B-16 PRETRAINED=openai URBAN1K=Urban1k bash scripts/eval_long_text.sh --metrics-file clip.json
#
# Variables: MODEL (no default), PRETRAINED for open_clip models, and the sets to evaluate: DCI, IIW,
# IIW_ANNO, SHARE4V with SHARE4V_ANNO, SHARE4V_VAL_NUM (1000,10000), URBAN1K. Further arguments are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

: "${MODEL:?set it to a model folder, or to open_clip:NAME}"

options=(--model "$MODEL")
for name in PRETRAINED DCI IIW IIW_ANNO SHARE4V SHARE4V_ANNO SHARE4V_VAL_NUM URBAN1K; do
  if [ -n "${!name:-}" ]; then
    option=$(printf %s "$name" | tr 'A-Z_' 'a-z-')  # bash 3 has no ${name,,}
    options+=("--$option" "${!name}")
  fi
done

export PYTHONPATH="$PWD:$PWD/datasets${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m lexlip.cli eval-long-text "${options[@]}" "$@"
