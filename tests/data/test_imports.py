"""The rooms of the data layer import one way: sources <- loading, sources <- convert."""

import ast
from pathlib import Path

import pytest

import lexlip_data

ROOT = Path(lexlip_data.__file__).parent
MAY_IMPORT = {"sources": {"errors", "sources"}, "loading": {"errors", "sources", "loading"},
              "convert": {"errors", "sources", "convert"}}  # fmt: skip


def turned_round(root: Path) -> list[str]:
    """ "file -> module" for every import, wherever in the file it stands, that a room may not have."""
    found = []
    for room, allowed in MAY_IMPORT.items():
        for path in (root / room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                own = [name for name in names if name.split(".")[0] in ("lexlip_data", "lexlip")]
                fine = tuple(f"lexlip_data.{other}." for other in allowed)
                found += [f"{room}/{path.name} -> {name}" for name in own if not f"{name}.".startswith(fine)]
    return found


def test_the_rooms_import_one_way():
    assert turned_round(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("sources/a.py", "from lexlip_data.loading.rng import isolated", "sources/a.py -> lexlip_data.loading.rng"),
        ("loading/a.py", "import lexlip_data.convert.check", "loading/a.py -> lexlip_data.convert.check"),
        ("convert/a.py", "def f():\n    from lexlip_data.loading import rng", "convert/a.py -> lexlip_data.loading"),
        ("loading/a.py", "from lexlip.errors import UserError", "loading/a.py -> lexlip.errors"),
    ],
)
def test_an_arrow_that_is_turned_round_is_noticed(tmp_path, file, line, found):
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(line)
    assert turned_round(tmp_path) == [found]


def test_sources_and_converter_load_no_torch(python):
    modules = [
        f"lexlip_data.{room}.{path.stem}" for room in ("sources", "convert") for path in (ROOT / room).glob("*.py")
    ]
    done = python(
        f"import sys, {', '.join(modules)}; print(sorted({{'torch', 'lexlip'}} & set(sys.modules)))", text=True
    )
    assert done.stdout == "[]\n", done.stderr


def test_former_places_still_lead_to_what_was_there():
    from lexlip_data.arrow import ArrowSource
    from lexlip_data.pictures import open_image
    from lexlip_data.registry import open_split
    from lexlip_data.transforms import build_transform

    modules = ["sources.arrow", "sources.images", "sources.registry", "loading.transforms"]
    assert [item.__module__ for item in (ArrowSource, open_image, open_split, build_transform)] == [
        f"lexlip_data.{module}" for module in modules
    ]
