#!/usr/bin/env bash
# Sets up .venv if need be, then ruff, mypy and the tests, these in TEST_PROCESSES processes (default 2); the 20 slowest
# are listed at the end. Arguments go to pytest:
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/test_packaging.py -k wheel
#   TEST_PROCESSES=0 bash scripts/test.sh --pdb      # in this process
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
.venv/bin/python -m ruff check
.venv/bin/python -m mypy
# One thread of torch each: the models are small, and several threads in each process would only compete.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} \
  .venv/bin/python -m pytest -q --durations=20 -n "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
