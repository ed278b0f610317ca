#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than nine minutes: the tests for it, the fused head, the steps of both
# phases at the paper's batches, the largest batches in 80 GB, Phase 2 at 384 pixels.
#
#   bash benchmarks/h100.sh [FOLDER]             # JSON files and log into FOLDER, default runs/gpu
#   PYTHON=python3.12 bash benchmarks/h100.sh    # another interpreter than .venv's
#
# Every part has its own time limit, and one that fails does not keep the others from running. The limits add up to
# 490 s, and to 520 s if every part is cut off and takes the 5 s that it has to end. A part that is cut off keeps the rows
# that it has measured.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

out=${1:-runs/gpu}
python=${PYTHON:-.venv/bin/python}
command -v "$python" > /dev/null || python=python3
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/datasets${PYTHONPATH:+:$PYTHONPATH}"

failed=()
part() {  # NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  echo "--- $name ---"
  timeout --signal=INT --kill-after=5 "$limit" "$@" || failed+=("$name (status $?)")
  echo "$name took $((SECONDS - start)) s"
}

{
  date -u
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv || true
  part head 65 "$python" benchmarks/head.py --device cuda --batch 100 --json "$out/head.json"
  part phase1 110 "$python" benchmarks/step.py --device cuda --phases 1 --batch 100 --largest 80 --json "$out/phase1.json"
  part phase2 110 "$python" benchmarks/step.py --device cuda --phases 2 --batch 90 --largest 80 --json "$out/phase2.json"
  part phase2_384 65 "$python" benchmarks/step.py --device cuda --phases 2 --batch 32 --image-size 384 \
    --json "$out/phase2_384.json"
  part compiled 65 "$python" benchmarks/step.py --device cuda --phases 1 --batch 100 --compile --json "$out/compiled.json"
  part tests 75 "$python" -m pytest -q -m gpu -p no:cacheprovider tests
  echo "done after $SECONDS s"
  if ((${#failed[@]})); then
    printf 'failed or cut off: %s\n' "${failed[*]}"
    exit 1
  fi
} 2>&1 | tee "$out/log.txt"
