"""The rooms of docs/ARCHITECTURE.md: who may import whom, read from the imports."""

import ast
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"errors", "utils", "ops", "models"}
ALLOWED = {  # room -> the rooms of lexlip that it may import where a module is loaded
    "errors": set(), "utils": {"errors"}, "ops": {"errors"}, "launch": {"errors"}, "sparse": {"errors", "utils"},
    "models": MODELS, "convert": MODELS | {"features"}, "index": {"errors", "utils", "sparse"},
    "sync": MODELS | {"sparse", "index", "encode"}, "search": MODELS | {"sparse", "index", "sync"},
    "classify": MODELS | {"sparse", "encode"},
    "serve": MODELS | {"index", "sparse", "sync"},
    "explain": MODELS, "evaluate": MODELS | {"sparse", "index"}, "encode": MODELS | {"sparse", "index", "launch"},
    "features": MODELS | {"encode", "index"}, "train": MODELS | {"sparse", "evaluate", "launch", "features"},
    "fit": MODELS | {"sparse", "evaluate", "convert", "features", "train"},
    "integrations": MODELS | {"sparse", "index"},
}  # fmt: skip
LATER = {  # and what may be imported inside a function, when it is called
    "index": {"models", "launch"}, "evaluate": {"launch", "encode"}, "features": {"launch"},
}  # fmt: skip
DATA = {
    "errors": set(),
    "command": {"errors"},
    "sources": {"errors"},
    "loading": {"errors", "sources"},
    "convert": {"errors", "sources"},
}
BANNED = {"models": {"sacred", "pytorch_lightning"}, "index": {"torch"}, "sparse": {"torch"}, "sources": {"torch"}}


def imports(path: Path):
    """(module, whether at the top of the file) of every import that runs."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module] if "." in node.module else [f"{node.module}.{name.name}" for name in node.names]
            yield from ((name, id(node) in top) for name in names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, id(node) in top) for name in node.names)


def wrong_arrows(root: Path) -> list[str]:
    wrong = []
    for package, allowed in (("lexlip", ALLOWED), ("lexlip_data", DATA)):
        folder = root / package if package == "lexlip" else root / "datasets" / package
        for path in folder.rglob("*.py"):
            room = path.relative_to(folder).parts[0].removesuffix(".py")
            for module, top in imports(path):
                parts = module.split(".")
                if parts[0] == package and room in allowed and len(parts) > 1 and parts[1] in allowed:
                    right = parts[1] == room or parts[1] in allowed[room]
                    right = right or (not top and parts[1] in LATER.get(room, ()))
                else:
                    right = parts[0] not in (BANNED.get(room, set()) if top else {"Phase1", "Phase2"})
                    right = right and not (package == "lexlip_data" and parts[0] == "lexlip")
                    right = right and parts[0] not in ("Phase1", "Phase2")
                if not right:
                    wrong.append(f"{path.relative_to(root)} imports {module}")
    for phase, other in (("Phase1", "Phase2"), ("Phase2", "Phase1")):
        for path in (root / phase).rglob("*.py"):
            wrong += [f"{path.relative_to(root)} imports {m}" for m, _ in imports(path) if m.split(".")[0] == other]
    return wrong


def test_all_arrows_point_one_way():
    assert wrong_arrows(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("lexlip/models/planted.py", "from lexlip.train.config import Config"),
        ("lexlip/models/planted.py", "def f():\n    import lexlip.train"),
        ("lexlip/ops/planted.py", "from lexlip.models import weights"),
        ("lexlip/models/planted.py", "import pytorch_lightning as pl"),
        ("lexlip/index/planted.py", "import torch"),
        ("lexlip/train/planted.py", "from Phase1.module import Phase1Module"),
        ("Phase2/planted.py", "from Phase1.decoder import WeakenedDecoder"),
        ("datasets/lexlip_data/sources/planted.py", "from lexlip_data.loading import rng"),
        ("datasets/lexlip_data/loading/planted.py", "import lexlip_data.convert.check"),
        ("datasets/lexlip_data/convert/planted.py", "def f():\n    from lexlip_data.loading import rng"),
        ("datasets/lexlip_data/loading/planted.py", "from lexlip.errors import UserError"),
    ],
)
def test_an_arrow_that_is_turned_round_is_found(tmp_path, file, line):
    for folder in ("lexlip", "Phase1", "Phase2", "datasets"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / file).write_text(line + "\n")
    found = wrong_arrows(tmp_path)
    assert found and all(file in arrow for arrow in found)
