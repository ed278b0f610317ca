"""What gets installed, under which names, and that no folder here hides a library. Offline; a few seconds."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from lexlip import LexLIP

ROOT = Path(__file__).resolve().parents[1]


def python(code, cwd, **environment):
    """Run code as `python -c` does, in a fresh interpreter, and return what it printed."""
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def requirements(name):
    lines = (line.split("#")[0].strip(" \\") for line in (ROOT / name).read_text().splitlines() if line[:1] != " ")
    return [Requirement(line) for line in lines if line]


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory):
    """Built from a copy, so that nothing is left in the checkout and no earlier build/ gets into the wheel."""
    setuptools = pytest.importorskip("setuptools", reason="building a wheel needs setuptools")
    if int(setuptools.__version__.split(".")[0]) < 71:
        pytest.importorskip("wheel", reason="setuptools older than 71 needs the wheel package to build one")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("lexlip", "Phase1", "Phase2", "configs", "datasets/lexlip_data"):
        # Not what runs inside Phase1/ or Phase2/ leave behind.
        unwanted = shutil.ignore_patterns("__pycache__", "result", "runs", "data")
        shutil.copytree(ROOT / folder, source / folder, ignore=unwanted)
    for file in (ROOT / "datasets").glob("*.py"):  # not the folder's data, which a user may keep there
        shutil.copy(file, source / "datasets")
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # The call that pip makes, without pip's search for build tools.
    python(f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})", cwd=source)
    (built,) = out.glob("lexlip-*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(wheel_file):
    """The texts in it by their names."""
    with zipfile.ZipFile(wheel_file) as archive:
        names = (name for name in archive.namelist() if not name.endswith(".safetensors"))
        return {name: archive.read(name).decode("utf-8", "replace") for name in names}


def test_wheel_holds_every_package_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert tops == {"lexlip", "lexlip_data", "Phase1", "Phase2"}  # no `datasets`, `tests`, `configs`
    for folder, package in (
        ("lexlip", "lexlip"),
        ("datasets/lexlip_data", "lexlip_data"),
        ("Phase1", "Phase1"),
        ("Phase2", "Phase2"),
    ):
        for file in (ROOT / folder).rglob("*.py"):
            assert f"{package}/{file.relative_to(ROOT / folder).as_posix()}" in wheel
    templates = {f"lexlip/models/card_{head}.md" for head in ("lexicon", "dense")}
    templates |= {f"lexlip/index/export/load_{engine}.sh" for engine in ("anserini", "lucene")}
    templates |= {f"lexlip/serve/page/{file.name}" for file in (ROOT / "lexlip" / "serve" / "page").iterdir()}
    assert templates | {"lexlip_data/convert/demo_note.txt"} <= wheel.keys()


def test_wheel_holds_the_model_that_comes_with_the_package(wheel_file):
    """All its files, as they are, in the wheel at most 16 MB."""
    folder = ROOT / "lexlip" / "pretrained" / "photos-small"
    files = {file.relative_to(ROOT).as_posix(): zlib.crc32(file.read_bytes()) for file in files_of(folder)}
    with zipfile.ZipFile(wheel_file) as archive:
        inside = [item for item in archive.infolist() if item.filename.startswith("lexlip/pretrained/photos-small/")]
    assert {item.filename: item.CRC for item in inside} == files
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {Path(name).name for name in files}
    assert sum(item.compress_size for item in inside) < 16 << 20


def files_of(folder):
    return [file for file in folder.rglob("*") if file.is_file()]


@pytest.mark.slow
def test_the_model_opens_from_the_wheel_alone(wheel_file, tmp_path):
    """In an empty folder, without network, with the packages that it needs and no checkout on the path."""
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(installed)
    photo = Image.new("RGB", (300, 200), (120, 170, 230))
    photo.paste((40, 140, 50), (0, 110, 300, 200))
    photo.save(empty / "x.jpg")
    code = (
        "from lexlip import LexLIP; m = LexLIP.from_pretrained('photos-small'); "
        "print(m.lexicon(m.encode_image(['x.jpg'])))"
    )
    where = "; import sys; print(*(sys.modules[n].__file__ for n in ('lexlip', 'lexlip_data')), sep='\\n')"
    environment = {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    words, *imported = python(code + where, cwd=empty, **environment).splitlines()
    assert all(Path(file).is_relative_to(installed) for file in imported) and len(imported) == 2
    (said,) = ast.literal_eval(words)
    model = LexLIP.from_pretrained("photos-small")
    (wanted,) = model.lexicon(model.encode_image([empty / "x.jpg"]))
    assert [word for word, _ in said[:5]] == [word for word, _ in wanted[:5]]
    assert [file.name for file in empty.iterdir()] == ["x.jpg"]


def test_wheel_says_that_its_packages_are_typed(wheel):
    """PEP 561: without this file, a type checker takes everything of ours for Any."""
    assert {name for name in wheel if name.endswith("py.typed")} == {
        "lexlip/py.typed", "lexlip_data/py.typed", "Phase1/py.typed", "Phase2/py.typed"
    }  # fmt: skip


def test_wheel_ships_the_configs_inside_lexlip(wheel):
    for file in (ROOT / "configs").rglob("*.yaml"):
        inside = f"lexlip/configs/{file.relative_to(ROOT / 'configs').as_posix()}"
        assert wheel[inside] == file.read_text(encoding="utf-8")
    assert "lexlip/configs/base.yaml" in wheel


def metadata_lines(wheel):
    (info,) = {name.split("/")[0] for name in wheel if ".dist-info/" in name}
    return info, wheel[f"{info}/METADATA"].splitlines()


def wheel_requirements(wheel):
    _, lines = metadata_lines(wheel)
    return [Requirement(line.removeprefix("Requires-Dist: ")) for line in lines if line.startswith("Requires-Dist: ")]


def test_wheel_metadata(wheel):
    info, metadata = metadata_lines(wheel)
    assert "Requires-Python: >=3.10" in metadata
    assert set(requirements("requirements.txt")) <= set(wheel_requirements(wheel))
    assert "lexlip = lexlip.cli:main" in wheel[f"{info}/entry_points.txt"]
    (version,) = (line.removeprefix("Version: ") for line in metadata if line.startswith("Version: "))
    assert f'__version__ = "{version}"' in (ROOT / "lexlip" / "__init__.py").read_text()


def test_datasets_is_the_library_even_from_the_root(tmp_path):
    """`python -c` puts the current folder first on the path; a real package further on must still win over it."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("name = 'the library'")
    assert python("import datasets; print(datasets.name)", cwd=ROOT, PYTHONPATH=str(tmp_path)) == "the library"
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_installed_packages_import_from_anywhere(tmp_path):
    try:
        importlib.metadata.distribution("lexlip")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("lexlip is not installed here")
    # Found, not imported: that needs no torch, and seconds less.
    names = ("lexlip", "lexlip_data", "Phase1", "Phase2")
    code = f"from importlib.util import find_spec; print(*(name for name in {names} if find_spec(name)))"
    assert python(code, cwd=tmp_path, PYTHONPATH="").split() == list(names)


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_lock_pins_one_version_of_every_requirement(version, wheel):
    """Of requirements.txt and of the extra dev, which holds the other extras."""
    environment = {"python_version": version, "python_full_version": f"{version}.0", "extra": "dev"}

    def wanted(requirement):
        return not requirement.marker or requirement.marker.evaluate(environment)

    pins = [pin for pin in requirements("requirements.lock") if wanted(pin)]
    exact = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(exact) == len(pins)
    needs = list(filter(wanted, wheel_requirements(wheel)))
    assert {"torch", "pytest", "fastapi"} <= {need.name for need in needs}
    for need in needs:
        assert need.specifier.contains(exact[canonicalize_name(need.name)]), need


def test_the_lock_has_checksums_of_every_release_and_names_no_place():
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))
    for entry in entries:
        pin, *hashes = entry.strip().split(" \\\n    --hash=")
        assert re.match(r"[\w.-]+==[\w.]+( ; .*)?$", pin), pin
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", entry) for entry in hashes), pin
    setup = (ROOT / "scripts" / "setup.sh").read_text()
    installs = re.findall(r"^ *pip install .*-r .*$", setup, re.MULTILINE)
    assert len(installs) == 3 and sum("--require-hashes" in line for line in installs) == 2  # torch's CPU builds: none


def test_every_requirement_says_its_lowest_version(wheel):
    """Without a floor, the lowest release of all is asked for, and few of those still build."""
    for need in wheel_requirements(wheel):
        assert any(part.operator in (">=", "==", "~=") for part in need.specifier), need
