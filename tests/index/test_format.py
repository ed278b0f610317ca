"""A second reader, written from docs/INDEX.md alone, sees the same documents as the index itself."""

import json
import re
import struct
import zlib

import numpy as np
import pytest

from lexlip.index import Index, SparseRows, add, build, delete


class Bits:
    def __init__(self, data):
        self.value = int.from_bytes(data, "little")

    def number(self, begin, count):
        return self.value >> begin & ((1 << count) - 1)


def read_container(path, entry):
    content = path.read_bytes()
    assert len(content) == entry["bytes"] and zlib.crc32(content) == entry["crc32"]
    assert content[:8] == content[-8:] == b"LEXLIPIX"
    length, crc = struct.unpack("<II", content[-16:-8])
    footer = content[-16 - length : -16]
    assert zlib.crc32(footer) == crc
    footer = json.loads(footer)
    assert footer["version"] == 1
    sections = {}
    for name, (begin, size, crc) in footer["sections"].items():
        sections[name] = content[begin : begin + size]
        assert begin % 8 == 0 and zlib.crc32(sections[name]) == crc
    return footer, sections


def read_list(data, count, low, bits):
    fields = Bits(data[: (count * (low + bits) + 7) // 8])
    unary, place, document, ones = Bits(data[(count * (low + bits) + 7) // 8 :]), 0, -1, []
    for i in range(count):
        zeros = 0
        while not unary.number(place, 1):
            zeros, place = zeros + 1, place + 1
        ones.append(place)
        place += 1
        field = fields.number(i * (low + bits), low + bits)
        document += 1 + (zeros << low | field >> bits)
        yield document, field & ((1 << bits) - 1), ones[-1]


def read_ids(facts, sections, documents, varint):
    if facts["kind"] == "int":
        width, data = facts["width"], sections["ids"]
        numbers = [int.from_bytes(data[width * d : width * (d + 1)], "little") for d in range(documents)]
        wrap = lambda value: (value + 2**63) % 2**64 - 2**63
        return [wrap(facts["first"] + (number if width else d)) for d, number in enumerate(numbers)]
    ids = []
    for begin, end in zip(*[np.frombuffer(sections["id_groups"], "<u8").tolist()[n:] for n in (0, 1)]):
        place, before = begin, b""
        while place < end:
            shared, place = varint(sections["ids"], place) if place > begin else (0, place)
            rest, place = varint(sections["ids"], place)
            before = before[:shared] + sections["ids"][place : place + rest]
            place += rest
            ids.append(before.decode())
    return ids


def read_index(folder, varint):
    """{id: {term: stored weight}} of all live documents."""
    first_line, body = (folder / "manifest").read_bytes().split(b"\n", 1)
    assert re.fullmatch(rb"lexlip-index 1 crc32=[0-9a-f]{8}", first_line)
    assert int(first_line[-8:], 16) == zlib.crc32(body)
    found = {}
    for entry in json.loads(body)["segments"]:
        footer, sections = read_container(folder / entry["file"]["name"], entry["file"])
        assert footer["kind"] == "segment" and footer["documents"] == entry["documents"]
        bags = [{} for _ in range(footer["documents"])]
        bits, number = footer["impact_bits"], footer["lists"]
        values = np.frombuffer(sections["impacts"], "<f2").astype(float).tolist()
        columns, place, table = zlib.decompress(sections["lists"]), 0, []
        for dtype in ("<u4", "<u4", "<u4", "u1", "<u2"):
            table.append(np.frombuffer(columns, dtype, number, place).tolist())
            place += number * np.dtype(dtype).itemsize
        term, begin, skips, used = -1, 0, [], [0] * (1 << bits)
        for gap, count, size, low, top in zip(*table):
            term += gap
            codes = []
            for i, (document, code, one) in enumerate(
                read_list(sections["postings"][begin : begin + size], count, low, bits)
            ):
                bags[document][term] = values[code]
                codes.append(code)
                used[code] += 1
                if i and i % 256 == 0:
                    skips.append((document, one))
            assert max(codes) == top
            begin += size
        assert sections["postings"][begin:] == bytes(8)
        assert np.frombuffer(sections["skips"], "<u4").reshape(-1, 2).tolist() == [list(skip) for skip in skips]
        ids = read_ids(footer["ids"], sections, footer["documents"], varint)
        deleted = bytes(len(bags) // 8 + 1)
        if entry["deletions"]:
            facts, parts = read_container(folder / entry["deletions"]["name"], entry["deletions"])
            assert facts["kind"] == "deletions"
            deleted = parts["deleted"]
        live = [d for d in range(len(bags)) if not Bits(deleted).number(d, 1)]
        assert len(live) == entry["documents"] - entry["deleted"]
        assert sum(used) == footer["postings"]
        for document in live:
            assert ids[document] not in found
            found[ids[document]] = bags[document]
    return found


@pytest.mark.parametrize("kind", ["numbers", "gaps", "names"])
def test_another_reader(tmp_path, rows, varint, kind):
    make = {"numbers": lambda n: n, "gaps": lambda n: 7 * n - 900, "names": lambda n: f"photo {n}.jpg"}[kind]
    names = [make(number) for number in range(2000)]
    batches = [rows(1500, 40, 10, ids=names[:1500]), rows(600, 40, 10, seed=9, ids=names[1400:])]
    build(tmp_path, batches[:1], impact_bits=7)
    add(tmp_path, batches[1:])
    delete(tmp_path, names[5:900:31])
    found = read_index(tmp_path, varint)
    assert set(found) == set(names) - set(names[5:900:31])
    index = Index.open(tmp_path)
    for id in names[::37]:
        if id in found:
            shares = index.explain({term: 1.0 for term in range(40)}, id)
            assert {share.term: share.document for share in shares} == found[id]
    stored = {}
    for id, terms, weights in (document for batch in batches for document in batch.documents()):
        stored[id] = dict(zip(terms.tolist(), weights.astype(float).tolist()))
    assert all(bag.keys() == stored[id].keys() for id, bag in found.items())
    rounding = [abs(weight - stored[id][term]) for id, bag in found.items() for term, weight in bag.items()]
    assert np.mean(rounding) < 0.02  # of weights of 1 on average, in 7 bits


def test_a_version_to_come_is_refused_by_its_number(tmp_path, monkeypatch):
    from lexlip.index import IndexingError, container

    monkeypatch.setattr(container, "VERSION", 2)
    build(tmp_path, [SparseRows.from_bags([{1: 1.0}])])
    monkeypatch.undo()
    with pytest.raises(IndexingError, match="of format 2, this code reads 1"):
        Index.open(tmp_path)
