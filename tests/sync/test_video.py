"""Videos as moments: a clip that the test makes, red, then green, then blue."""

import pytest

pytest.importorskip("av", reason="PyAV is not installed")

import io  # noqa: E402

import clips  # noqa: E402
import numpy as np  # noqa: E402
from clips import COLOURS, make_clip  # noqa: E402
from PIL import Image  # noqa: E402

from lexlip.index import SparseRows  # noqa: E402
from lexlip.sync.photos import read_photo  # noqa: E402
from lexlip.sync.run import Settings, sync  # noqa: E402
from lexlip.sync.video import frame_at, moments  # noqa: E402
from lexlip_data.errors import BrokenImage  # noqa: E402


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "photos" / "clip.mp4")


def colour_of(data):
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3).mean(axis=0)
    return int(np.abs(np.array(COLOURS) - pixels).sum(axis=1).argmin())


class ColourEncoder:
    """One term for each colour, and one that all have."""

    def __init__(self, encoder):
        self.stamp = encoder.stamp

    def __call__(self, top_k):
        return self

    def windows(self, corpus, windows):
        for start, stop in windows:
            found = [corpus.image(number) for number in range(start, stop)]
            yield (
                SparseRows.from_bags([{colour_of(data): 1.0, 9: 0.5} for _, data in found], [id for id, _ in found]),
                [],
            )


def test_a_video_is_taken_every_few_seconds(clip):
    assert moments(clip, 2.0) == [0.0, 2.0, 4.0] and moments(clip, 60) == [0.0]
    assert [colour_of(frame_at(clip, second)) for second in (0.0, 1.5, 2.1, 3.8, 4.0, 99)] == [0, 0, 1, 1, 2, 2]


def test_a_clip_of_a_telephone_held_upright_is_turned(tmp_path, monkeypatch):
    """The matrix in its track header turns by a quarter, clockwise: what was left is above."""
    halves = np.zeros((48, 64, 3), np.uint8)
    halves[:, :32] = 255
    monkeypatch.setattr(clips, "COLOURS", [halves] * 3)
    clip = make_clip(tmp_path / "photos" / "clip.mp4")
    data = clip.read_bytes()
    upright, quarter = ([1 << 16, 0, 0, 0, 1 << 16], [0, 1 << 16, 0, (1 << 32) - (1 << 16), 0])
    at = data.index(np.array(upright, ">u4").tobytes(), data.index(b"tkhd"))
    clip.write_bytes(data[:at] + np.array(quarter, ">u4").tobytes() + data[at + 20 :])
    image = Image.open(io.BytesIO(frame_at(clip, 2.1)))
    assert image.size == (48, 64) and image.getpixel((24, 8))[0] > 200 > 50 > image.getpixel((24, 56))[0]


def test_its_moments_are_documents(clip, tmp_path, encoder, held, photo_path):
    Image.new("RGB", (30, 30), COLOURS[1]).save(clip.parent / "photo.png")
    done = sync(clip.parent, tmp_path / "i", ColourEncoder(encoder), Settings(video_seconds=2.0))
    assert (done.added, done.encoded, done.documents) == (2, 4, 4)
    assert held(tmp_path / "i") == {
        "photo.png": {1: 1.0, 9: 0.5}, "clip.mp4#t=0.0": {0: 1.0, 9: 0.5}, "clip.mp4#t=2.0": {1: 1.0, 9: 0.5},
        "clip.mp4#t=4.0": {2: 1.0, 9: 0.5},
    }  # fmt: skip
    path = photo_path(tmp_path / "i", "clip.mp4#t=4.0")
    assert path == clip and colour_of(read_photo(path, "clip.mp4#t=4.0")) == 2
    clip.rename(clip.with_name("other.mp4"))
    moved = sync(clip.parent, tmp_path / "i", None)
    assert (moved.renamed, moved.encoded) == (1, 0)
    assert sorted(held(tmp_path / "i")) == ["other.mp4#t=0.0", "other.mp4#t=2.0", "other.mp4#t=4.0", "photo.png"]
    clip.with_name("other.mp4").unlink()
    sync(clip.parent, tmp_path / "i", None)
    assert list(held(tmp_path / "i")) == ["photo.png"]


def test_or_one_document_the_maximum_over_them(clip, tmp_path, encoder, held, photo_path):
    settings = Settings(video_seconds=2.0, video_whole=True)
    sync(clip.parent, tmp_path / "i", ColourEncoder(encoder), settings)
    assert held(tmp_path / "i") == {"clip.mp4": {0: 1.0, 1: 1.0, 2: 1.0, 9: 0.5}}
    assert photo_path(tmp_path / "i", "clip.mp4") == clip and colour_of(read_photo(clip, "clip.mp4")) == 0
    assert sync(clip.parent, tmp_path / "i", None).unchanged == 1


def test_a_file_that_is_no_video(clip, tmp_path, encoder, held):
    (clip.parent / "cut.mp4").write_bytes(clip.read_bytes()[:300])
    done = sync(clip.parent, tmp_path / "i", ColourEncoder(encoder), Settings(video_seconds=2.0))
    assert list(done.broken) == ["cut.mp4"] and "no video that can be read" in done.broken["cut.mp4"]
    with pytest.raises(BrokenImage):
        frame_at(clip.parent / "cut.mp4", 1.0)
    assert sync(clip.parent, tmp_path / "none", ColourEncoder(encoder), Settings(video_seconds=4.0)).documents == 2


def test_videos_are_taken_once_they_can_be(clip, tmp_path, encoder, held, monkeypatch):
    Image.new("RGB", (30, 30), COLOURS[1]).save(clip.parent / "photo.png")
    monkeypatch.setattr("lexlip.sync.run.find_spec", lambda name: None)
    done = sync(clip.parent, tmp_path / "i", ColourEncoder(encoder))
    assert done.documents == 1 and any("1 .mp4" in note for note in done.notes)
    monkeypatch.setattr("lexlip.sync.run.find_spec", lambda name: True)
    assert sync(clip.parent, tmp_path / "i", ColourEncoder(encoder)).added == 1
    assert sorted(held(tmp_path / "i")) == ["clip.mp4#t=0.0", "photo.png"]
