# shellcheck shell=bash
# Sourced by the scripts beside it: strict mode, the root of the repository as the working folder, and the Python of
# scripts/setup.sh where there is one, else $PYTHON, else the first on the PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -x .venv/bin/python ]; then
  python=$PWD/.venv/bin/python
else
  python=${PYTHON:-$(command -v python || command -v python3)}
fi
export python
