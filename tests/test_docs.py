"""The documentation holds: what it links to, names or imports exists, and README stays short."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("lexlip", "datasets", "Phase1", "Phase2", "configs", "scripts", "benchmarks", "examples", "docs", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_PATH = re.compile(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w\.(?:py|sh|yaml|sbatch|md|svg|png)\b")
TEST_NAME = re.compile(r"`(test_[a-z0-9]+_\w+)`")
BRIDGED = ("mteb", "pyterrier", "sentence_transformers")
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def anchors(page: Path) -> set[str]:
    """What GitHub makes of the page's headings."""
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links to a file that is not there, or to a heading that its page does not have."""
    broken = []
    for target in LINK.findall(text_of(page)):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not re.match(r"[a-z]+:", target) and (not file.exists() or anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def missing_files(page: Path) -> list[str]:
    """Files that are named, from the root of the repository or from the page's folder, and are not there."""
    named = CODE_PATH.findall(text_of(page))
    return [path for path in named if not (ROOT / path).exists() and not (page.parent / path).exists()]


def of_all_pages(find) -> dict[str, list]:
    """What `find` returns for each page, without the pages where that is nothing."""
    return {str(page.relative_to(ROOT)): wrong for page in PAGES if (wrong := find(page))}


def test_links_lead_somewhere():
    assert of_all_pages(broken_links) == {}


def test_files_that_are_named_exist():
    assert of_all_pages(missing_files) == {}


def test_tests_that_are_named_exist():
    files = (ROOT / "tests").rglob("test_*.py")
    tests = {name for file in files for name in re.findall(r"^ *def (test_\w+)", text_of(file), re.MULTILINE)}
    assert of_all_pages(lambda page: sorted(set(TEST_NAME.findall(text_of(page))) - tests)) == {}


def test_imports_that_are_shown_work():
    """Readers copy them, so a module that moves needs either a new page or a shim."""
    shown = set()
    for page in PAGES:
        for block in PYTHON_BLOCK.findall(text_of(page)):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom):
                    shown |= {(node.module, alias.name) for alias in node.names}
    ours = {(module, name) for module, name in shown if re.match(r"lexlip|Phase\d", module)}
    assert ("lexlip", "LexLIP") in ours and ("Phase1.module", "Phase1Module") in ours
    assert [(module, name) for module, name in ours if not shown_name_is_there(module, name)] == []


def shown_name_is_there(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:  # of a bridge to a package that is not installed here
        return error.name in BRIDGED


def test_every_config_is_in_the_table_of_configs():
    table = text_of(ROOT / "configs" / "README.md")
    named = {file.stem for file in (ROOT / "configs").rglob("*.yaml")} - {"base"}
    assert {name for name in named if f"`{name}`" not in table} == set()


def test_the_default_losses_are_told():
    weights = yaml.safe_load(text_of(ROOT / "configs" / "base.yaml"))["loss_names"]
    (told,) = re.findall(
        r"^\| .*`loss_names` \|.* 1 each but (.+) 0 \|", text_of(ROOT / "docs" / "TRAINING.md"), re.MULTILINE
    )
    assert weights == {name: float(f"`{name}`" not in told) for name in weights}


def test_readme_is_short():
    text = text_of(ROOT / "README.md")
    assert len(text.split()) <= 900
    assert text[: text.index("```")].count("\n") <= 25  # one screen before the first command


def test_the_page_of_results_is_short():
    assert len(text_of(ROOT / "docs" / "RESULTS.md").split()) <= 700


def test_these_checks_see_what_is_broken(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Some page\n\n[a](page.md#some-page) [b](none.md) [c](page.md#nowhere) [d](https://example.org) [e](#none)\n"
        "`lexlip/cli.py` `lexlip/nowhere.py` and another/lexlip/nowhere.py\n"
    )
    assert broken_links(page) == ["none.md", "page.md#nowhere", "#none"]
    assert missing_files(page) == ["lexlip/nowhere.py"]
