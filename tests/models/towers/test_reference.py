"""References: what they name, and where they may not lead."""

import pytest

from lexlip.errors import UserError
from lexlip.models.towers import check_reference, load_image_tower, load_text_tower
from lexlip.models.towers.reference import parse, split_references


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("timm:test_vit.r160_in1k#patches", ("timm", "test_vit.r160_in1k", None, "patches")),
        ("test_vit", ("timm", "test_vit", None, None)),
        ("timm:hf-hub:owner/name#cls", ("timm", "hf-hub:owner/name", None, "cls")),
        ("hf-hub:owner/name", ("timm", "hf-hub:owner/name", None, None)),
        ("open_clip:ViT-B-32/openai", ("open_clip", "ViT-B-32/openai", None, None)),
        ("hf:openai/clip#cls+mean", ("hf", "openai/clip", None, "cls+mean")),
        ("owner/name", ("hf", "owner/name", None, None)),
        ("st:owner/name", ("st", "owner/name", None, None)),
    ],
)
def test_parts(text, parts):
    found = parse(text)
    assert (found.kind, found.name, found.file, found.view) == parts
    assert str(found).endswith(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:", "names nothing"),
        ("keras:x", "unknown kind 'keras'"),
        ("timm:test_vit#tokens", "'tokens' is no view"),
        ("timm:test_vit@nowhere.pth", "no weights file nowhere.pth"),
        ("timm:no_such_model_at_all", "timm cannot build"),
        ("st:nobody/nothing", "nothing"),
    ],
)
def test_what_cannot_be_is_said(text, message):
    with pytest.raises(UserError, match=message):
        load_image_tower(text) if not text.startswith("st:") else load_text_tower(text)


def test_a_file_alone_does_not_say_what_it_is(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(UserError, match="say of what: timm:NAME@"):
        parse(str(tmp_path / "w.pth"))


def test_a_folder_may_have_any_name(tmp_path, bert_folder):
    odd = bert_folder.rename(tmp_path / "a@b#c")
    found = parse(str(odd))
    assert found.folder == odd and found.view is None and found.file is None
    assert parse(f"hf:{odd}#mean").folder == odd


def test_side_by_side():
    assert split_references("timm:a + hf:b#cls+mean") == ["timm:a", "hf:b#cls+mean"]
    assert split_references(["timm:a", "hf:b"]) == ["timm:a", "hf:b"]


def test_relative_paths_begin_from_the_folder(tmp_path, bert_folder):
    tower = load_text_tower("hf:bert", folder=tmp_path, trust_sources=False)
    assert tower.reference == "hf:bert"


@pytest.mark.parametrize(
    "reference",
    ["timm:test_vit", "hf:owner/name", "hf-hub:owner/name", "open_clip:ViT-B-32/openai", "hf-hub:o/n + hf:bert"],
)
def test_names_are_refused_where_sources_are_not_trusted(tmp_path, bert_folder, reference):
    with pytest.raises(UserError, match="would be fetched by its name"):
        load_image_tower(reference, trust_sources=False, folder=tmp_path)


def test_paths_outside_are_refused_where_sources_are_not_trusted(tmp_path, bert_folder):
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "link").symlink_to(bert_folder)
    (tmp_path / "w.pth").write_bytes(b"")
    for reference in ("hf:../bert", f"hf:{bert_folder}", "hf:link", "timm:test_vit@../w.pth"):
        with pytest.raises(UserError, match="outside"):
            check_reference(reference, inside)
    with pytest.raises(UserError, match="outside any folder"):
        check_reference(f"hf:{bert_folder}")
    check_reference("hf:bert", tmp_path)


@pytest.mark.parametrize("content", ["5", "[" * 100_000, "\xe9"])
def test_a_folder_whose_config_is_none(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="holds no readable config.json"):
        parse(str(tmp_path))
