#!/usr/bin/env bash
# Sets up .venv if need be, then ruff, then the tests. Arguments go to pytest:
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/test_packaging.py -k wheel
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
.venv/bin/python -m ruff check
.venv/bin/python -m pytest -q "$@"
