"""The exported Anserini collection in real Lucene: the jar of an installed pyserini, run by this machine's Java."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lexlip.index import Index, build
from lexlip.index.export import export, query_body

SCALE = 100


@pytest.fixture(scope="module")
def jar():
    """Its path. ANSERINI names another one; pyserini 0.22 needs Java 11, from 0.25 on Java 21."""
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    found = os.environ.get("ANSERINI")
    if not found:
        spec = importlib.util.find_spec("pyserini")
        places = spec.submodule_search_locations if spec is not None else []
        jars = [path for place in places or () for path in Path(place, "resources", "jars").glob("*fatjar.jar")]
        if not jars:
            pytest.skip("needs the jar of pyserini: pip install --no-deps pyserini==0.22.1 with Java 11 to 20")
        found = str(jars[0])
    ran = subprocess.run(["java", "-cp", found, "io.anserini.index.IndexCollection"], capture_output=True, text=True)
    if "UnsupportedClassVersionError" in ran.stderr:
        pytest.skip(f"{found} needs a newer Java; with Java 11 to 20: pip install --no-deps pyserini==0.22.1")
    return found


@pytest.mark.slow  # starts Java twice
@pytest.mark.skipif(sys.platform == "win32", reason="load.sh needs bash")
def test_lucene_finds_what_we_find(jar, rows, queries, tmp_path):
    build(tmp_path / "index", [rows(300, 200, 20, ids=[f"d{n}" for n in range(300)])], impact_bits=12)
    index = Index.open(tmp_path / "index")
    export(index, "anserini", tmp_path / "out", scale=SCALE)
    asked = {str(n): query for n, query in enumerate(queries(40, 200)) if len(set(query[0])) == len(query[0]) > 0}
    lines = [f"{n}\t{query_body('anserini', dict(zip(*map(list, query))), scale=SCALE)}" for n, query in asked.items()]
    (tmp_path / "out" / "query.tsv").write_text("\n".join(lines) + "\n")
    subprocess.run(
        ["bash", str(tmp_path / "out" / "load.sh")],
        check=True,
        capture_output=True,
        env={**os.environ, "ANSERINI": jar},
    )
    theirs = {}
    for line in (tmp_path / "out" / "run.txt").read_text().splitlines():
        query, _, document, _, score, _ = line.split()
        theirs.setdefault(query, {})[document] = float(score)
    assert sum(map(len, theirs.values())) > 200
    for n, query in asked.items():
        hits = dict(index.search(query, len(index)))
        assert len(theirs.get(n, {})) == min(10, len(hits))
        for document, score in theirs.get(n, {}).items():
            shared = index.explain(query, document)
            slack = sum(0.5 * (share.query + share.document) * SCALE + 0.25 for share in shared)  # both are rounded
            assert abs(score - hits[document] * SCALE**2) <= slack + 1e-3
            assert score == pytest.approx(hits[document] * SCALE**2, rel=0.02)
