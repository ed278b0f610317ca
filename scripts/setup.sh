#!/usr/bin/env bash
# Makes .venv with exactly what requirements.lock names, file by file, and this project in editable form.
#
#   bash scripts/setup.sh                      # python3, which must be 3.10 to 3.13
#   PYTHON=python3.12 bash scripts/setup.sh    # another interpreter; kept by later runs until it is changed
#
# With CUDA libraries about 7 GB on disk and a few minutes. A second run finds the stamp and stops at once.
# CPU builds have no checksums in the lock: TORCH_FROM=(the CPU index of your torch release) bash scripts/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# Two set-ups at once would remove each other's files; the second waits, then finds the stamp. The system releases the
# lock when the script ends, however it ends. macOS has no flock and goes without.
if command -v flock > /dev/null; then
  exec 9< scripts/setup.sh
  flock 9
fi

venv=.venv
stamp=$venv/.finished  # written last, so that an interrupted set-up is repeated

# Without PYTHON, the interpreter behind the present .venv stays: otherwise a .venv made with python3.12
# would be thrown away by the next plain run. The base executable, because .venv's own is about to be removed.
chosen=${PYTHON:-}
if [ -z "$chosen" ] && [ -x $venv/bin/python ]; then chosen=$venv/bin/python; fi
chosen=${chosen:-python3}
found=$("$chosen" -c 'import sys; print("%d.%d" % sys.version_info[:2], sys._base_executable)' 2>/dev/null) ||
  fail "cannot run '$chosen'. Set PYTHON to a Python 3.10 to 3.13, e.g. PYTHON=python3.11 bash scripts/setup.sh"
read -r version python <<< "$found"
case $version in
  3.10 | 3.11 | 3.12 | 3.13) ;;
  *) fail "'$chosen' is Python $version, not 3.10 to 3.13. Set PYTHON, e.g. PYTHON=python3.11 bash scripts/setup.sh" ;;
esac

want="$version $PWD ${TORCH_FROM:-} $(cat requirements.lock setup.py | cksum)"
if [ -f $stamp ] && [ "$(cat $stamp)" = "$want" ]; then
  exit 0
fi

echo "setup: making $venv with Python $version from requirements.lock; this takes a few minutes"
# From scratch, so that nothing of an interrupted or older set-up remains.
rm -rf $venv
"$python" -m venv $venv
pip() { $venv/bin/python -m pip --disable-pip-version-check --no-input "$@"; }
# Byte-compiling all 12,000 files takes a third of the time; the check below compiles those that are used.
# --no-deps: the lock holds every dependency, and nothing that it does not name may come along.
if [ -z "${TORCH_FROM:-}" ]; then
  pip install -qq --no-compile --no-deps --require-hashes -r requirements.lock
else
  # All but torch, torchvision and what torch's CUDA build needs; an entry is a line and its indented checksums.
  # shellcheck disable=SC2016  # awk's own $0
  others='/^[^ ]/ { kept = $0 !~ /^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/ } kept'
  pip install -qq --no-compile --no-deps --require-hashes -r <(awk "$others" requirements.lock)
  pair=$(sed -n -E 's/^(torch(vision)?==[^\\]*)\\?$/\1/p' requirements.lock)
  pip install -qq --no-compile --no-deps --index-url "$TORCH_FROM" -r <(printf '%s\n' "$pair")
fi
# setuptools is in the lock too.
pip install -qq --no-deps --no-build-isolation -e .

# -u: many images set PYTHONDONTWRITEBYTECODE, and then every later start would compile everything anew.
env -u PYTHONDONTWRITEBYTECODE $venv/bin/python -W ignore - <<'PY'
import sys
from importlib.metadata import version

import torch

try:
    import torchvision

    kept = torchvision.ops.nms(torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([0.9, 0.8]), 0.5)
    assert kept.tolist() == [0], kept
except Exception as error:
    sys.exit(
        f"setup: torch {torch.__version__} and torchvision {version('torchvision')} do not fit together ({error}).\n"
        "setup: Most likely they come from two indexes, such as a CPU build of one only. Let pip see one place that has\n"
        "setup: both (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip config list), then run this again."
    )

import pyarrow.dataset, pytest, pytorch_lightning, sacred, tensorboard, timm  # noqa
from pytorch_lightning.callbacks import ModelCheckpoint  # noqa
from torch.utils.tensorboard import SummaryWriter  # noqa
from transformers import AutoTokenizer, BertForMaskedLM, BertTokenizerFast, get_scheduler  # noqa
PY

printf '%s\n' "$want" > $stamp
echo "setup: done; activate it with: source $venv/bin/activate"
