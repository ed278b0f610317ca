"""JSON annotations: what they leave open is told, and no image gets another one's caption."""

import json

import pytest

from lexlip_data.convert.annotations import read_annotations, read_coco, read_karpathy
from lexlip_data.errors import DataError


@pytest.fixture
def gcc(tmp_path):
    """gcc(files, entries) -> {caption: file} of the table of GCC's training split."""

    def read(files, entries):
        for file in files:
            path = tmp_path / "images_train" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\xff\xd8\xff")
        (tmp_path / "train_annot.json").write_text(json.dumps(entries))
        (table,) = read_annotations(tmp_path, "gcc")
        return {table.caption(i, 0): str(table.path(i).relative_to(tmp_path)) for i in range(len(table))}

    return read


def test_images_of_one_name_are_told_apart_by_the_ends_of_their_paths(gcc):
    entries = [["/old/images/0/000.jpg", "red"], ["/old/images/1/000.jpg", "blue"], ["C:\\old\\1\\001.jpg", "green"]]
    assert gcc(["0/000.jpg", "1/000.jpg", "1/001.jpg"], entries) == {
        "red": "images_train/0/000.jpg", "blue": "images_train/1/000.jpg", "green": "images_train/1/001.jpg",
    }  # fmt: skip


def test_an_image_that_is_missing_takes_no_other_ones_file(gcc):
    found = gcc(["1/000.jpg"], [["old/0/000.jpg", "red"], ["old/1/000.jpg", "blue"]])
    assert found == {"red": "old/0/000.jpg", "blue": "images_train/1/000.jpg"}


def test_images_in_deeper_folders_and_without_suffixes(gcc):
    assert gcc(["a/b/c/7", "a/b/d/8.jpg"], [["old/c/7", "red"], ["old/8.jpg", "blue"]]) == {
        "red": "images_train/a/b/c/7", "blue": "images_train/a/b/d/8.jpg",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "paths", "message"),
    [
        (["0/a.jpg", "1/a.jpg"], ["old/2/a.jpg"], "'old/2/a.jpg' may be images_train/0/a.jpg or images_train/1/a.jpg"),
        (["9/a.jpg"], ["old/0/a.jpg", "old/1/a.jpg"], "'old/0/a.jpg' and 'old/1/a.jpg' may be images_train/9/a.jpg"),
    ],
)
def test_an_ambiguity_is_an_error_that_names_both(gcc, files, paths, message):
    with pytest.raises(DataError, match=f"train_annot.json: {message}; give paths whose ends"):
        gcc(files, [[path, "a caption"] for path in paths])


def coco(tmp_path, images, annotations):
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    (table,) = read_coco(path, tmp_path, "coco2017", "val")
    return {table.image_id(i): table.captions(i) for i in range(len(table))}, table.left_out


@pytest.mark.parametrize(("listed", "used"), [(7, "7"), ("7", 7), (7, 7.0), ("7", "7.0"), (0, "0")])
def test_ids_of_coco_match_whatever_their_type(tmp_path, listed, used):
    found, left_out = coco(
        tmp_path, [{"id": listed, "file_name": "a.jpg"}], [{"image_id": used, "caption": "a dog"}] * 2
    )
    assert found == {"a.jpg": ["a dog", "a dog"]} and left_out == []


def test_images_of_coco_without_a_caption_are_told(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(2)]
    found, left_out = coco(tmp_path, images, [{"image_id": 0, "caption": "a dog"}])
    assert list(found) == ["0.jpg"]
    assert [(item.path, item.kind, item.reason) for item in left_out] == [
        ("1.jpg", "empty", "image 1 has no annotation")
    ]
    with pytest.raises(DataError, match="the list 'annotations' is empty"):
        coco(tmp_path, images, [])


def test_what_karpathys_json_lacks_is_told(tmp_path):
    path = tmp_path / "d.json"
    image = {"filename": "a.jpg", "split": "train", "sentences": []}
    for images, message in (([], "the list 'images' is empty"), ([image], "none of its 1 images has a sentence")):
        path.write_text(json.dumps({"images": images}))
        with pytest.raises(DataError, match=message):
            read_karpathy(path, name="mine")
    path.write_text(json.dumps({"images": [image, {**image, "filename": "b.jpg", "sentences": [{"raw": "a dog"}]}]}))
    (table,) = read_karpathy(path, name="mine")
    assert len(table) == 1
    assert [(item.path, item.kind, item.reason) for item in table.left_out] == [
        ("a.jpg", "empty", "images[0] has no sentence")
    ]


def test_a_split_that_training_does_not_read_is_told(tmp_path, jpeg, command, capsys):
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    for split, told in (("train", False), ("dev", True)):
        entry = {"filename": "a.jpg", "split": split, "sentences": [{"raw": "a dog"}]}
        (tmp_path / "d.json").write_text(json.dumps({"images": [entry]}))
        command("karpathy", "--json", tmp_path / "d.json", "--name", "mine", "--out", tmp_path / split, "--workers", 0)
        assert ("mine_dev: training reads the splits train, val, test, not 'dev'" in capsys.readouterr().err) is told
