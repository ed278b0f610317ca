#!/usr/bin/env bash
# The main job on the embedded demo data: OpenMoji drawings to Arrow, Phase 1, Phase 2, recall on the test pictures.
# Usage: bash scripts/quickstart.sh
# Writes runs/quickstart/metrics.json and report.html. What is done already is not done again; a change of the code's
# configuration redoes what depends on it.
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/setup.sh
python=.venv/bin/python
runs=runs/quickstart
mkdir -p "$runs"
started=$SECONDS

# stage NAME OUTPUT COMMAND...: run the command unless OUTPUT is there from the same commands and configuration.
history=$(cat configs/base.yaml configs/task_*.yaml configs/demo*.yaml | sha256sum)
stage() {
  local name=$1 output=$2 mark="$runs/$1.done"
  shift 2
  history=$(printf '%s %s' "$history" "$*" | sha256sum)
  if [ -e "$output" ] && [ "$(cat "$mark" 2>/dev/null)" = "$history" ]; then
    echo "== $name: done before"
    return
  fi
  echo "== $name"
  rm -f "$mark"
  "$@"
  echo "$history" >"$mark"
}

# train NAME RUN_PY SETTINGS...: a run's folder is its own, so that a broken-off attempt leaves nothing behind.
train() {
  rm -rf "${runs:?}/$1_seed0"
  local script=$2
  shift 2
  "$python" "$script" with "$@"
}
phase1="$runs/phase1_seed0/demo/checkpoints/last.ckpt"
phase2="$runs/phase2_seed0/demo/checkpoints/last.ckpt"
common=(log_dir="$runs" version=demo)

stage data data/openmoji/openmoji_test.arrow \
  "$python" datasets/convert.py demo --out data/openmoji --vocab data/openmoji/vocab --vocab-size 2000 --size 96 --workers 2
stage phase1 "$phase1" \
  train phase1 Phase1/run.py task_Text_MAE_Contrastive_train demo demo_phase1 "${common[@]}"
stage phase2 "$phase2" \
  train phase2 Phase2/run.py task_contrastive_train demo demo_phase2 "${common[@]}" load_path="$phase1"

evaluate() {
  "$python" Phase2/run.py with task_IRTR_evaluate demo exp_name="evaluate_$1" "${common[@]}" \
    load_path="$2" metrics_file="$runs/$1.json"
}
stage evaluate-untrained "$runs/untrained.json" evaluate untrained ""
stage evaluate-phase1 "$runs/phase1.json" evaluate phase1 "$phase1"
stage evaluate-phase2 "$runs/phase2.json" evaluate phase2 "$phase2"

stage model "$runs/model/config.json" "$python" -m lexlip.cli export "$phase2" "$runs/model"
stage report "$runs/report.html" "$python" scripts/report.py "$runs" data/openmoji
"$python" scripts/report.py --table "$runs"
cat <<END
report:  $runs/report.html
numbers: $runs/metrics.json
model:   $runs/model    (from lexlip import LexLIP; LexLIP.from_pretrained("$runs/model"))
$((SECONDS - started)) s
END
