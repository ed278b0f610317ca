"""What the readers make of each layout, and what they say is missing."""

import pytest

from lexlip.errors import BenchmarkError
from lexlip.evaluate.long_text.layouts import read_dci, read_iiw, read_share4v, read_urban1k


def test_dci_takes_all_splits_and_both_captions(dci):
    pairs = read_dci(dci)
    photos = dci / "densely_captioned_images" / "photos"
    assert pairs.images == [photos / "a.png", photos / "b.png", photos / "c.png"]
    assert pairs.texts == ["red. It is. Really", "blue. It is. Really", "blue. It is. Really"]
    assert not pairs.missing


def test_iiw_joins_its_three_parts(iiw):
    pairs = read_iiw(iiw)
    names = [path.relative_to(iiw).as_posix() for path in pairs.images]
    assert names == ["docci/one.jpg", "docci/two.jpg", "docci_aar/three.jpg", "dci/four.jpg", "dci/five.jpg"]
    assert pairs.texts[2] == "All blue. Nothing else"
    assert read_iiw(iiw, iiw).texts == pairs.texts


def test_share4v_takes_the_first_entries_and_the_answer(share4v):
    root, annotations = share4v
    pairs = read_share4v(root, annotations, 3)
    assert [path.name for path in pairs.images] == ["sa_0.jpg", "sa_1.jpg", "sa_2.jpg"]
    assert pairs.texts == ["A. red", "A. green", "A. green"] and pairs.name == "SV-3"
    assert read_share4v(root, annotations, 1000).name == "SV-1k"
    assert read_share4v(root, annotations, 6).missing == [f"{annotations}: entries 4 to 5, the file holds 4"]


def test_urban1k_takes_first_lines(urban1k):
    pairs = read_urban1k(urban1k)
    assert [path.name for path in pairs.images] == ["1.jpg", "10.jpg", "2.jpg"]
    assert pairs.texts == ["A red street. Cars", "A blue street. Cars", "A green street. Cars"]


def test_missing_images_and_entries_are_listed(dci, iiw, urban1k):
    photos = dci / "densely_captioned_images"
    (photos / "photos" / "b.png").unlink()
    (photos / "annotations" / "c.json").unlink()
    assert [str(line).split(":")[0] for line in read_dci(dci).missing] == [
        str(photos / "photos" / "b.png"), str(photos / "annotations" / "c.json"),
    ]  # fmt: skip
    (iiw / "IIW-400" / "data.jsonl").write_text('{"image/key": "three", "IIW": " . "}\n')
    assert read_iiw(iiw).missing == [f"{iiw / 'IIW-400' / 'data.jsonl'}, line 1: no text"]
    (urban1k / "caption" / "2.txt").unlink()
    (urban1k / "image" / "1.jpg").unlink()
    lines = read_urban1k(urban1k).missing
    assert len(lines) == 2 and "1.jpg: no such image" in lines[0] and "2.txt" in lines[1]


def test_annotations_of_another_form_are_refused_by_file_and_field(dci, iiw, share4v, urban1k):
    annotations = dci / "densely_captioned_images"
    (annotations / "annotations" / "a.json").write_text('{"image": "a.png", "short_caption": "red"}')
    with pytest.raises(BenchmarkError, match="a.json has no field 'extra_caption'"):
        read_dci(dci)
    (annotations / "splits.json").write_text("[1]")
    with pytest.raises(BenchmarkError, match="splits.json must map"):
        read_dci(dci)
    with pytest.raises(BenchmarkError, match="splits.json cannot be read: No such file"):
        read_dci(iiw)
    (iiw / "DCI_Test" / "data.jsonl").write_text('{"image": "four.jpg", "IIW": "x"}\n{"image": \n')
    with pytest.raises(BenchmarkError, match="data.jsonl, line 2 is no JSON"):
        read_iiw(iiw)
    root, file = share4v
    file.write_text('[{"image": "x", "conversations": [1]}]')
    with pytest.raises(BenchmarkError, match="entry 0: conversations"):
        read_share4v(root, file, 1)
    (urban1k / "caption" / "1.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(BenchmarkError, match="1.txt is no UTF-8"):
        read_urban1k(urban1k)
    with pytest.raises(BenchmarkError, match="image: no such folder"):
        read_urban1k(iiw)
