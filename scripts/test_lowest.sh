#!/usr/bin/env bash
# Runs the tests on the lowest versions that requirements.txt and the extra dev admit, in an environment of its own.
# Arguments go to pytest:
#
#   bash scripts/test_lowest.sh
#   bash scripts/test_lowest.sh tests/index -x
#   PYTHON=python3.11 bash scripts/test_lowest.sh    # default: the oldest supported Python of this machine
#
# uv chooses the versions, because pip cannot: the lowest of what we ask for, the newest of all that comes with it.
# .venv-lowest takes about 7 GB with CUDA libraries; UV_TORCH_BACKEND=cpu takes torch's CPU build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv-lowest
python=$PWD/$venv/bin/python
chosen=${PYTHON:-}
# The folder of pyenv too: its python3.10 on the PATH only starts where pyenv was told to use 3.10.
for candidate in python3.10 ~/.pyenv/versions/3.10.*/bin/python python3.11 python3.12 python3.13; do
  [ -n "$chosen" ] || ! "$candidate" -c '' 2> /dev/null || chosen=$candidate
done
: "${chosen:?no Python 3.10 to 3.13 here; set PYTHON}"

stamp=$venv/.finished  # written last, so an interrupted set-up has none and is made again
want="$("$chosen" -c 'import sys; print(sys.version_info[:2], sys._base_executable)') $(cat requirements.txt setup.py | cksum)"
if [ ! -f $stamp ] || [ "$(cat $stamp)" != "$want" ]; then
  rm -rf $venv
  "$chosen" -m venv $venv
  "$python" -m pip --disable-pip-version-check --no-input install -q uv
  install() { "$python" -m uv pip install -q --python "$python" "$@"; }
  # --refresh-package: uv keeps what setup.py asked for last time, and does not see that requirements.txt changed.
  install --refresh-package lexlip --resolution lowest-direct -r setup.py --extra dev
  install --no-deps --no-build-isolation -e .
  printf '%s\n' "$want" > $stamp
fi

# The scripts under test take this Python, not that of .venv.
PYTHON=$python OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} \
  "$python" -m pytest -q -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"
