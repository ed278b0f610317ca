#!/usr/bin/env bash
# Kill both phases again and again; the weights must end as if nobody had. About ten minutes.
# Usage: bash scripts/soak.sh [--kills 20] [--seed 0]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python scripts/soak.py "$@"
