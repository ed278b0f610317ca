#!/usr/bin/env bash
# The whole job on the demo data: OpenMoji drawings to Arrow, Phase 1, Phase 2, recall on the test images.
# Usage: bash scripts/quickstart.sh [--photos DIR]
# --photos DIR: the report also shows what the model that comes with the package says of the photos in this folder.
# Writes runs/quickstart/metrics.json, report.html and a model folder. Finished stages are not repeated, unless their
# configuration has changed. Changed code repeats nothing: remove runs/quickstart to start over.
set -euo pipefail
photos=()
while [ $# -gt 0 ]; do
  case $1 in
    --photos) [ $# -gt 1 ] && [ -d "$2" ] || { echo "quickstart: --photos ${2-}: no such folder" >&2; exit 2; }
      photos=(--photos "$(realpath "$2")"); shift 2 ;;
    *) echo "quickstart: $1 is not known; usage: bash scripts/quickstart.sh [--photos DIR]" >&2; exit 2 ;;
  esac
done
cd "$(dirname "$0")/.."

bash scripts/setup.sh
python=.venv/bin/python
runs=runs/quickstart
mkdir -p "$runs"
started=$SECONDS

# stage NAME "OUTPUTS" "INPUTS" COMMAND...: run the command, unless all outputs exist and were made by the same command
# from the same inputs after the same earlier stages.
history=
stage() {
  local name=$1 outputs=$2 inputs=$3 mark="$runs/$1.done" output missing=
  shift 3
  # shellcheck disable=SC2086  # lists of names without spaces
  history=$(printf '%s %s %s' "$history" "$*" "$(cat $inputs </dev/null | cksum)" | cksum)
  for output in $outputs; do [ -e "$output" ] || missing=$output; done
  if [ -z "$missing" ] && [ "$(cat "$mark" 2>/dev/null)" = "$history" ]; then
    echo "== $name: done before"
    return
  fi
  echo "== $name"
  rm -f "$mark"
  "$@"
  echo "$history" >"$mark"
}

# train NAME RUN_PY SETTINGS...: an interrupted attempt's run directory is removed first.
train() {
  rm -rf "${runs:?}/$1_seed0"
  local script=$2
  shift 2
  "$python" "$script" with "$@"
}
phase1="$runs/phase1_seed0/demo/checkpoints/last.ckpt"
phase2="$runs/phase2_seed0/demo/checkpoints/last.ckpt"
common=(log_dir="$runs" version=demo)
data=data/openmoji
arrow="$data/openmoji_train.arrow $data/openmoji_val.arrow $data/openmoji_test.arrow"
tower="configs/base.yaml configs/demo.yaml"

stage data "$arrow $data/vocab/tokenizer.json" "datasets/lexlip_data/convert/demo.py datasets/lexlip_data/convert/vocabulary.py" \
  "$python" datasets/convert.py demo --out "$data" --vocab "$data/vocab" --vocab-size 2000 --size 96 --workers 2 --overwrite
stage phase1 "$phase1" "$tower configs/task_Text_MAE_Contrastive_train.yaml configs/demo_phase1.yaml" \
  train phase1 Phase1/run.py task_Text_MAE_Contrastive_train demo demo_phase1 "${common[@]}"
stage phase2 "$phase2" "$tower configs/task_contrastive_train.yaml configs/demo_phase2.yaml" \
  train phase2 Phase2/run.py task_contrastive_train demo demo_phase2 "${common[@]}" load_path="$phase1"

evaluate() {
  "$python" Phase2/run.py with task_IRTR_evaluate demo exp_name="evaluate_$1" "${common[@]}" \
    load_path="$2" metrics_file="$runs/$1.json"
}
stage evaluate-untrained "$runs/untrained.json" "$tower configs/task_IRTR_evaluate.yaml" evaluate untrained ""
stage evaluate-phase1 "$runs/phase1.json" "" evaluate phase1 "$phase1"
stage evaluate-phase2 "$runs/phase2.json" "" evaluate phase2 "$phase2"

stage model "$runs/model/config.json $runs/model/model.safetensors" "" \
  "$python" -m lexlip.cli export "$phase2" "$runs/model"
[ ${#photos[@]} -eq 0 ] || rm -f "$runs/report.done"  # what is in the folder may have changed
stage report "$runs/report.html $runs/metrics.json" scripts/report.py \
  "$python" scripts/report.py "$runs" "$data" ${photos[@]+"${photos[@]}"}
"$python" scripts/report.py --table "$runs"
cat <<END
report:  $runs/report.html
numbers: $runs/metrics.json
model:   $runs/model    (from lexlip import LexLIP; LexLIP.from_pretrained("$runs/model"))
$((SECONDS - started)) s
END
