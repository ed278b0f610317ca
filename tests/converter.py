"""datasets/convert.py as a module: run by path, it has no name that can be imported."""

import importlib.util
from pathlib import Path

_SCRIPT = Path(__file__).resolve().parents[1] / "datasets" / "convert.py"
_spec = importlib.util.spec_from_file_location("convert_command", _SCRIPT)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)
main = script.main
