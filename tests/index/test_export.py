"""Scores computed from exported files, by the other engine's own rules, are ours."""

import json
import subprocess

import numpy as np
import pytest

from lexlip.cli import main
from lexlip.index import Index, IndexingError, SparseRows, add, build, delete
from lexlip.index.export import export, query_body

LUCENE = ("opensearch", "elasticsearch")


@pytest.fixture
def index(tmp_path, rows):
    names = [f"photo “{number}”" for number in range(3000)]
    build(tmp_path / "index", [rows(2000, 300, 20, ids=names[:2000])])
    add(tmp_path / "index", [rows(1000, 300, 20, seed=2, ids=names[2000:])])
    delete(tmp_path / "index", names[::50])
    return Index.open(tmp_path / "index")


def bulk(folder):
    """Documents of all bulk requests by id, in order; each request's lines checked."""
    documents = {}
    for path in sorted((folder / "documents").glob("*.ndjson")):
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        assert lines.pop() == "" and len(lines) % 2 == 0  # ends with a line feed, as bulk requests must
        for action, document in zip(lines[::2], lines[1::2]):
            (id,) = json.loads(action)["index"].values()
            document = json.loads(document)
            assert list(document) == ["vector"] and id not in documents
            documents[id] = document["vector"]
    return documents


def kept_by_lucene(value):
    """FeatureField: the float32's bits without the lower 15, as a term frequency."""
    assert 1.17549435e-38 <= value < 3.4e38  # a positive normal float, or it is refused
    return (np.float32(value).view(np.uint32) >> 15 << 15).view(np.float32)


def tokens_of(body, format):
    """The one query that the documented body holds."""
    body = json.loads(body)
    assert body["size"] == 10 and body["_source"] is False
    ((kind, query),) = body["query"].items()
    if format == "opensearch":
        assert kind == "neural_sparse" and list(query) == ["vector"] and list(query["vector"]) == ["query_tokens"]
        return query["vector"]["query_tokens"]
    assert kind == "sparse_vector" and query["field"] == "vector" and query["prune"] is False
    return query["query_vector"]


def lucene_scores(documents, tokens):
    """Each clause in float32, their sum in float64, as Lucene adds."""
    scores = {}
    for id, features in documents.items():
        shared = [float(np.float32(tokens[t]) * kept_by_lucene(features[t])) for t in tokens if t in features]
        if shared:
            scores[id] = sum(shared)
    return scores


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("format", LUCENE)
def test_scores_of_the_lucene_family(format, rounded, index, queries, tmp_path):
    assert export(index, format, tmp_path / "out", rounded=rounded) == len(index)
    documents = bulk(tmp_path / "out")
    assert len(documents) == len(index)
    names = {name for features in documents.values() for name in features}
    assert all("." not in name and name.rstrip("+").isdecimal() for name in names)  # dots are refused
    assert rounded != any(name.endswith("+") for name in names)
    tolerance = 0.002 if rounded else 1e-6
    for query in queries(30, 300):
        ours = dict(index.search(query, 3000))
        theirs = lucene_scores(documents, tokens_of(query_body(format, query, rounded=rounded), format))
        assert theirs.keys() == ours.keys()
        assert [theirs[id] for id in ours] == pytest.approx(list(ours.values()), rel=tolerance)


@pytest.mark.parametrize("format", LUCENE)
def test_the_mapping(format, index, tmp_path):
    export(index, format, tmp_path / "out")
    mapping = json.loads((tmp_path / "out" / "index.json").read_text())
    field = mapping["mappings"]["properties"]["vector"]
    expected = {
        "opensearch": {"type": "rank_features"},
        "elasticsearch": {"type": "sparse_vector", "index_options": {"prune": False}},
    }
    assert field == expected[format] and mapping["settings"]["index"]["number_of_shards"] == 1


def test_the_sample_finds_what_is_expected(index, tmp_path):
    export(index, "opensearch", tmp_path / "out")
    tokens = tokens_of((tmp_path / "out" / "query.json").read_text(), "opensearch")
    theirs = lucene_scores(bulk(tmp_path / "out"), tokens)
    expected = json.loads((tmp_path / "out" / "expected.json").read_text(encoding="utf-8"))
    assert len(expected) == 10
    assert [theirs[hit["id"]] for hit in expected] == pytest.approx([hit["score"] for hit in expected], rel=1e-6)


def test_loading_sends_every_file_and_stops_at_an_error(index, tmp_path):
    """load.sh against a curl that notes what it is asked for."""
    export(index, "elasticsearch", tmp_path / "out")
    fake = tmp_path / "bin" / "curl"
    fake.parent.mkdir()
    fake.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$*" >> {tmp_path}/asked\nprintf "%s" "$ANSWER"\n')
    fake.chmod(0o755)

    def load(answer):
        (tmp_path / "asked").write_text("")
        path = f"{fake.parent}:/usr/bin:/bin"
        return subprocess.run(
            ["bash", tmp_path / "out" / "load.sh", "http://x:9200", "images"], capture_output=True, text=True,
            env={"PATH": path, "ANSWER": answer, "CURL_OPTIONS": "-u me:secret"},
        )  # fmt: skip

    assert load('{"errors":false}').returncode == 0
    asked = (tmp_path / "asked").read_text()
    assert all("-u me:secret" in line for line in asked.splitlines())
    assert "PUT http://x:9200/images -H" in asked and "@index.json" in asked
    for path in (tmp_path / "out" / "documents").iterdir():
        assert f"@documents/{path.name}" in asked
    failed = load('{"errors":true,"items":[]}')
    assert failed.returncode == 1 and "documents-00000.ndjson" in failed.stderr


def test_files_stay_small_enough_for_a_request(index, tmp_path, monkeypatch):
    from lexlip.index.export import files

    monkeypatch.setattr(files, "MAX_BYTES", 20_000)
    export(index, "opensearch", tmp_path / "out")
    sizes = [path.stat().st_size for path in (tmp_path / "out" / "documents").iterdir()]
    assert len(sizes) > 10 and max(sizes) <= 20_000
    assert len(bulk(tmp_path / "out")) == len(index)


def integer_scores(vectors, words):
    repeated = {word: words.count(word) for word in set(words)}
    return {id: sum(n * v[w] for w, n in repeated.items() if w in v) for id, v in vectors.items()}


def agree(vectors, index, queries, scale):
    """Scores are scale^2 times ours within what the two roundings may add."""
    for query in queries(20, 300):
        words = query_body("anserini", query, scale=scale).split()
        theirs = integer_scores(vectors, words)
        for id, score in index.search(query, 3000):
            shared = index.explain(query, id)
            slack = sum(0.5 * (share.query + share.document) * scale + 0.25 for share in shared)
            assert abs(theirs[id] - score * scale**2) <= slack + 1e-6


def test_anserini(index, queries, tmp_path):
    export(index, "anserini", tmp_path / "out", scale=50)
    vectors = {}
    for path in (tmp_path / "out" / "documents").glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            document = json.loads(line)
            assert set(document) == {"id", "contents", "vector"}
            assert all(isinstance(n, int) and n > 0 for n in document["vector"].values())
            vectors[document["id"]] = document["vector"]
    assert len(vectors) == len(index)
    agree(vectors, index, queries, 50)


def ciff_messages():
    """The classes of the published definition, made by the protobuf library."""
    pytest.importorskip("google.protobuf", reason="comes with tensorboard")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="ciff.proto", package="ciff", syntax="proto3")
    fields = {
        "Header": [
            ("version", "INT32"), ("num_postings_lists", "INT32"), ("num_docs", "INT32"),
            ("total_postings_lists", "INT32"), ("total_docs", "INT32"), ("total_terms_in_collection", "INT64"),
            ("average_doclength", "DOUBLE"), ("description", "STRING"),
        ],
        "Posting": [("docid", "INT32"), ("tf", "INT32")],
        "PostingsList": [("term", "STRING"), ("df", "INT64"), ("cf", "INT64"), ("postings", "MESSAGE")],
        "DocRecord": [("docid", "INT32"), ("collection_docid", "STRING"), ("doclength", "INT32")],
    }  # fmt: skip
    for name, members in fields.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(members, 1):
            repeated = kind == "MESSAGE"
            message.field.add(
                name=field, number=number, type=getattr(kinds, f"TYPE_{kind}"),
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                type_name=".ciff.Posting" if repeated else None,
            )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ciff.{name}")) for name in fields]


def test_ciff(index, queries, varint, tmp_path):
    header_of, _, list_of, record_of = ciff_messages()
    export(index, "ciff", tmp_path / "out", scale=50)
    data = (tmp_path / "out" / "index.ciff").read_bytes()
    place = 0

    def following(kind):
        nonlocal place
        size, place = varint(data, place)
        message = kind.FromString(data[place : place + size])
        place += size
        return message

    header = following(header_of)
    assert header.version == 1 and header.num_docs == header.total_docs == len(index)
    lists = [following(list_of) for _ in range(header.num_postings_lists)]
    records = [following(record_of) for _ in range(header.num_docs)]
    assert place == len(data)
    assert [found.term for found in lists] == sorted(found.term for found in lists)
    assert [record.docid for record in records] == list(range(len(index)))
    vectors = {record.collection_docid: {} for record in records}
    for found in lists:
        assert found.df == len(found.postings) and found.cf == sum(posting.tf for posting in found.postings)
        number = 0
        for place_, posting in enumerate(found.postings):
            assert posting.tf > 0 and (posting.docid > 0 or place_ == 0)
            number += posting.docid
            vectors[records[number].collection_docid][found.term] = posting.tf
    assert [record.doclength for record in records] == [sum(v.values()) for v in vectors.values()]
    assert header.total_terms_in_collection == sum(record.doclength for record in records)
    agree(vectors, index, queries, 50)


@pytest.mark.parametrize("format", ["opensearch", "elasticsearch", "anserini", "ciff"])
def test_number_ids_and_an_empty_index(format, tmp_path, rows, capsys):
    build(tmp_path / "numbers", [rows(70, 30, 5)])
    assert main(["index", "export", str(tmp_path / "numbers"), "--format", format, "--out", str(tmp_path / "a")]) == 0
    assert "70 documents" in capsys.readouterr().out
    build(tmp_path / "none", [SparseRows.from_bags([])])
    export(Index.open(tmp_path / "none"), format, tmp_path / "b")
    assert (tmp_path / "b").is_dir() and not list(tmp_path.glob("*.tmp"))


def test_a_sample_behind_empty_and_deleted_documents(tmp_path, monkeypatch):
    """Found in one reading of the postings, however many documents without terms come first."""
    from lexlip.index import stored

    build(tmp_path / "index", [SparseRows.from_bags([{}] * 200 + [{3: 1.0}, {5: 0.25, 7: 0.75}])])
    delete(tmp_path / "index", [200])
    readings, groups = [], stored.groups
    monkeypatch.setattr(stored, "groups", lambda *given: readings.append(given) or groups(*given))
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "mine").touch()
    assert export(Index.open(tmp_path / "index"), "anserini", tmp_path / "out") == 201
    assert len(readings) == 2  # the documents, and the sample
    assert (tmp_path / "out" / "query.tsv").read_text().split("\t")[1].split() == ["5"] * 25 + ["7"] * 75
    assert (tmp_path / "out.tmp" / "mine").exists()


def test_refusals(index, tmp_path, rows, flip):
    with pytest.raises(IndexingError, match="one of opensearch"):
        export(index, "solr", tmp_path / "out")
    with pytest.raises(IndexingError, match="scale=0"):
        export(index, "ciff", tmp_path / "out", scale=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(IndexingError, match="not empty"):
        export(index, "ciff", tmp_path / "full")
    with pytest.raises(IndexingError, match="up to 64"):
        query_body("opensearch", {1: 65.0})
    build(tmp_path / "long", [rows(2, 30, 5, ids=["a", "b" * 600])])
    with pytest.raises(IndexingError, match="1 to 512 bytes"):
        export(Index.open(tmp_path / "long"), "elasticsearch", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.tmp"))
    (segment, *_) = index.folder.glob("*.seg")
    flip(segment, 200)
    with pytest.raises(IndexingError, match="damaged"):
        export(Index.open(index.folder), "ciff", tmp_path / "out")
