"""An index follows a folder: what is encoded, what is not, what is refused."""

import os
import shutil

import pytest

from lexlip.errors import IndexBusy, IndexingError, UserError
from lexlip.index import Index, delete
from lexlip.index.store import read_manifest
from lexlip.sync.run import Settings, sync
from lexlip.sync.state import SyncState


def aged(path):
    os.utime(path, (1_600_000_000, 1_600_000_000))


def test_a_new_folder_is_encoded_and_then_left_alone(photos, tmp_path, encoder, held, due, photo_path):
    done = sync(photos, tmp_path / "i", encoder, batch=5)
    assert held(tmp_path / "i") == due(photos) and len(due(photos)) == 11
    assert (done.added, done.documents, done.broken) == (11, 11, {"sub/7.jpg": "broken on purpose"})
    assert read_manifest(tmp_path / "i").model == encoder.stamp
    generation = read_manifest(tmp_path / "i").generation
    encoder.encoded.clear()
    again = sync(photos, tmp_path / "i", None)  # no encoder is asked for
    assert (again.changes, again.unchanged, again.documents) == (0, 11, 11) and not encoder.encoded
    assert again.broken == {"sub/7.jpg": "broken on purpose"}  # told each time
    assert read_manifest(tmp_path / "i").generation == generation
    assert photo_path(tmp_path / "i", "sub/1.jpg") == photos / "sub" / "1.jpg"


def test_only_what_is_new_is_encoded(photos, tmp_path, encoder, held, due):
    sync(photos, tmp_path / "i", encoder)
    encoder.encoded.clear()
    (photos / "new.jpg").write_bytes(b"new")
    (photos / "0.jpg").write_bytes(b"another")
    (photos / "3.jpg").rename(photos / "sub" / "moved.jpg")
    shutil.copy(photos / "6.jpg", photos / "copy.jpg")
    os.utime(photos / "sub" / "1.jpg")  # touched
    (photos / "sub" / "2.jpg").unlink()
    (photos / "sub" / "4.jpg").write_bytes(b"broken now")
    done = sync(photos, tmp_path / "i", encoder)
    assert held(tmp_path / "i") == due(photos)
    assert sorted(encoder.encoded) == ["0.jpg", "new.jpg", "sub/4.jpg"]
    assert (done.added, done.changed, done.renamed, done.deleted) == (1, 1, 2, 2)
    assert sorted(done.broken) == ["sub/4.jpg", "sub/7.jpg"]


def test_files_that_change_places_need_no_encoding(photos, tmp_path, encoder, held, due):
    sync(photos, tmp_path / "i", encoder)
    encoder.encoded.clear()
    for one, other in (("0.jpg", "3.jpg"), ("sub/1.jpg", "9.jpg")):
        content = (photos / one).read_bytes()
        (photos / one).write_bytes((photos / other).read_bytes())
        (photos / other).write_bytes(content)
    sync(photos, tmp_path / "i", encoder)
    assert held(tmp_path / "i") == due(photos) and not encoder.encoded


def test_the_same_size_a_moment_later_is_seen(photos, tmp_path, encoder, held, due):
    sync(photos, tmp_path / "i", encoder)
    for text in (b"photo A", b"photo B"):
        (photos / "0.jpg").write_bytes(text)
        times = (photos / "0.jpg").stat().st_mtime_ns
        sync(photos, tmp_path / "i", encoder)
        os.utime(photos / "0.jpg", ns=(times, times))
    (photos / "0.jpg").write_bytes(b"photo C")
    os.utime(photos / "0.jpg", ns=(times, times))
    sync(photos, tmp_path / "i", encoder)
    assert held(tmp_path / "i") == due(photos)


def test_each_batch_is_one_publication_and_an_interruption_keeps_them(photos, tmp_path, encoder, held, due):
    calls = []

    class Stops(type(encoder)):
        def windows(self, corpus, windows):
            calls.append(len(corpus))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return super().windows(corpus, windows)

    with pytest.raises(KeyboardInterrupt):
        sync(photos, tmp_path / "i", Stops(), batch=4)
    assert read_manifest(tmp_path / "i").generation == 2 and len(held(tmp_path / "i")) == 8 - calls.count(None)
    sync(photos, tmp_path / "i", encoder, batch=4)
    assert held(tmp_path / "i") == due(photos) and len(encoder.encoded) == 4


def test_what_others_did_to_the_index_is_mended(photos, tmp_path, encoder, held, due):
    sync(photos, tmp_path / "i", encoder)
    delete(tmp_path / "i", ["0.jpg", "sub/1.jpg"])
    sync(photos, tmp_path / "i", encoder)
    assert held(tmp_path / "i") == due(photos)
    (tmp_path / "i" / "sync.journal").unlink()
    (photos / "0.jpg").unlink()
    sync(photos, tmp_path / "i", encoder)
    assert held(tmp_path / "i") == due(photos)


def test_several_folders_share_an_index(photos, tmp_path, encoder, held, due, photo_path):
    other = tmp_path / "holiday"
    shutil.copytree(photos, other)
    (other / "0.jpg").write_bytes(b"elsewhere")
    sync(photos, tmp_path / "i", encoder)
    sync(other, tmp_path / "i", encoder)
    assert held(tmp_path / "i") == {**due(photos), **due(other, "holiday/")}
    (photos / "0.jpg").unlink()
    (other / "3.jpg").unlink()
    for folder in (photos, other):
        sync(folder, tmp_path / "i", encoder)
    assert held(tmp_path / "i") == {**due(photos), **due(other, "holiday/")}
    assert photo_path(tmp_path / "i", "holiday/0.jpg") == other / "0.jpg"
    shutil.copytree(photos, tmp_path / "third")
    with pytest.raises(IndexingError, match="same id prefix 'holiday/'"):
        sync(tmp_path / "third", tmp_path / "i", encoder, Settings(id_prefix="holiday/"))
    (photos / "holiday").mkdir()
    (photos / "holiday" / "0.jpg").write_bytes(b"the id of another")
    with pytest.raises(IndexingError, match="'holiday/0.jpg' is a document of another folder"):
        sync(photos, tmp_path / "i", encoder)


def test_settings_stay_as_they_were_begun(photos, tmp_path, encoder, held, due):
    sync(photos, tmp_path / "i", encoder, Settings(id_prefix="p/"))
    assert held(tmp_path / "i") == due(photos, "p/")
    assert sync(photos, tmp_path / "i", encoder).changes == 0
    with pytest.raises(IndexingError, match="id_prefix='p/', not 'q/'; .* --rebuild"):
        sync(photos, tmp_path / "i", encoder, Settings(id_prefix="q/"))
    sync(photos, tmp_path / "i", encoder, Settings(id_prefix="q/"), rebuild=True)
    assert held(tmp_path / "i") == due(photos, "q/")


def test_a_folder_without_photos(photos, tmp_path, encoder, held):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no photo")
    with pytest.raises(UserError, match="no photos in it.*\n.*not read: 1 .txt"):
        sync(tmp_path / "empty", tmp_path / "i", encoder)
    assert not (tmp_path / "i").exists()
    sync(photos, tmp_path / "i", encoder)
    for path in list(photos.rglob("*.jpg")):
        path.unlink()
    assert sync(photos, tmp_path / "i", encoder).documents == 0 and held(tmp_path / "i") == {}


def test_a_disk_that_is_not_there_is_no_deletion(photos, tmp_path, encoder, held, due):
    for number in range(30):
        (photos / f"more{number}.jpg").write_bytes(b"more %d" % number)
    sync(photos, tmp_path / "i", encoder)
    before = held(tmp_path / "i")
    photos.rename(tmp_path / "away")
    photos.mkdir()
    with pytest.raises(UserError, match="none of its 42 photos is there any more; is its disk missing"):
        sync(photos, tmp_path / "i", encoder)
    assert held(tmp_path / "i") == before
    assert sync(photos, tmp_path / "i", encoder, may_be_empty=True).deleted == 42


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_keeps_its_photos(photos, tmp_path, encoder, held):
    sync(photos, tmp_path / "i", encoder)
    before = held(tmp_path / "i")
    (photos / "sub").chmod(0)
    try:
        assert sync(photos, tmp_path / "i", encoder).deleted == 0
    finally:
        (photos / "sub").chmod(0o755)
    assert held(tmp_path / "i") == before


def test_one_sync_at_a_time(photos, tmp_path, encoder):
    class Meddles(type(encoder)):
        def windows(self, corpus, windows):
            with pytest.raises(IndexBusy, match="another sync is at work"):
                sync(photos, tmp_path / "i", encoder)
            return super().windows(corpus, windows)

    assert sync(photos, tmp_path / "i", Meddles()).added == 11


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_time(photos, tmp_path, encoder, held, due):
    class Meddles(type(encoder)):
        def windows(self, corpus, windows):
            (photos / "0.jpg").write_bytes(b"changed")
            return super().windows(corpus, windows)

    sync(photos, tmp_path / "i", Meddles())
    assert "0.jpg" not in held(tmp_path / "i")
    sync(photos, tmp_path / "i", encoder)
    assert held(tmp_path / "i") == due(photos)


def test_a_journal_that_was_cut_off_is_read_up_to_there(photos, tmp_path, encoder, held, due):
    sync(photos, tmp_path / "i", encoder, batch=5)
    journal = tmp_path / "i" / "sync.journal"
    whole = journal.read_bytes()
    for cut in (1, 40, len(whole.splitlines()[-1]) + 3):
        journal.write_bytes(whole[:-cut])
        sync(photos, tmp_path / "i", encoder)
        assert held(tmp_path / "i") == due(photos)
    journal.write_bytes(whole.replace(b'"files"', b'"filed', 1))
    with pytest.raises(IndexingError, match="sync.journal, line .* is damaged; remove the file"):
        sync(photos, tmp_path / "i", encoder)


def test_the_journal_does_not_grow_without_end(photos, tmp_path, encoder):
    for number in range(60):
        (photos / "0.jpg").write_bytes(b"%d" % number)
        sync(photos, tmp_path / "i", encoder)
    assert len((tmp_path / "i" / "sync.journal").read_bytes().splitlines()) < 130
    assert len(SyncState(tmp_path / "i").roots[str(photos)].files) == 12
    assert len(Index.open(tmp_path / "i").segments) <= 8


def test_a_folder_reached_by_two_paths_is_one(photos, tmp_path, encoder, held, due):
    link = tmp_path / "link"
    link.symlink_to(photos, target_is_directory=True)
    for first, second in ((photos, link), (link, photos)):
        index = tmp_path / f"of_{first.name}"
        sync(first, index, encoder)
        encoder.encoded.clear()
        done = sync(second, index, encoder)
        assert (done.changes, encoder.encoded) == (0, []) and held(index) == due(photos)
    other = tmp_path / "moved"
    photos.rename(other)  # the folder that the index knows is the link, wherever it leads
    link.unlink()
    link.symlink_to(other, target_is_directory=True)
    assert sync(link, tmp_path / "of_link", encoder).changes == 0


def test_a_rebuild_that_fails_loses_nothing(photos, tmp_path, encoder, held, due):
    sync(photos, tmp_path / "i", encoder)
    journal = (tmp_path / "i" / "sync.journal").read_bytes()

    class Failing(type(encoder)):
        def windows(self, corpus, windows):
            raise IndexingError("no such model")

    with pytest.raises(IndexingError, match="no such model"):
        sync(photos, tmp_path / "i", Failing(), rebuild=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        sync(tmp_path / "empty", tmp_path / "i", encoder, rebuild=True)
    assert (tmp_path / "i" / "sync.journal").read_bytes() == journal
    encoder.encoded.clear()
    assert sync(photos, tmp_path / "i", encoder).changes == 0 and encoder.encoded == []
    sync(photos, tmp_path / "i", encoder, Settings(id_prefix="q/"), rebuild=True)
    encoder.encoded.clear()
    assert sync(photos, tmp_path / "i", encoder).changes == 0 and encoder.encoded == []
    assert held(tmp_path / "i") == due(photos, "q/")


def test_a_rebuild_that_dies_in_between_knows_nothing(photos, tmp_path, encoder, held, due, monkeypatch):
    sync(photos, tmp_path / "i", encoder)
    (photos / "0.jpg").unlink()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lexlip.index.writer.build", killed)
        sync(photos, tmp_path / "i", encoder, rebuild=True)
    sync(photos, tmp_path / "i", encoder)
    assert held(tmp_path / "i") == due(photos)


def test_a_rebuild_refuses_to_lose_another_folder(photos, tmp_path, encoder, held):
    shutil.copytree(photos, tmp_path / "other")
    for folder in (photos, tmp_path / "other"):
        sync(folder, tmp_path / "i", encoder)
    before = held(tmp_path / "i")
    for folder in (photos, tmp_path / "other", tmp_path / "other" / "sub"):
        with pytest.raises(IndexingError, match="too, which --rebuild would lose; sync into a new --index"):
            sync(folder, tmp_path / "i", encoder, rebuild=True)
    assert held(tmp_path / "i") == before and len(SyncState(tmp_path / "i").roots) == 2
    encoder.encoded.clear()
    assert sync(photos, tmp_path / "i", encoder).changes == 0 and encoder.encoded == []


def test_broken_files_are_looked_at_again_with_other_readers(photos, tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("lexlip.sync.run.find_spec", lambda name: None)
    sync(photos, tmp_path / "i", encoder, Settings(video_seconds=10.0))
    aged(photos / "sub" / "7.jpg")
    assert sync(photos, tmp_path / "i", encoder).changes == 0
    encoder.encoded.clear()
    monkeypatch.setattr("lexlip.sync.run.find_spec", lambda name: True)
    sync(photos, tmp_path / "i", encoder)
    assert encoder.encoded == ["sub/7.jpg"]
