"""Modules that are loaded when they are used first: for what takes a search longer to load than to do."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Later:
    """Stands for a module: `pc = Later("pyarrow.compute")`."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)
