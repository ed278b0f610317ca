"""Videos are sent as their files are, in parts; and who is refused."""

import asyncio
import errno
import os
from urllib.parse import quote

import pytest

for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(module, reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs the extra dev")

from fastapi import Response  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from lexlip.index import SparseRows, build  # noqa: E402
from lexlip.serve.app import create_app  # noqa: E402
from lexlip.serve.hosts import checked_names  # noqa: E402
from lexlip.serve.limits import Limits  # noqa: E402
from lexlip.serve.videos import VideoResponse  # noqa: E402

CLIP = b"\0\0\0\x18ftypisom" + bytes(range(256)) * 1000
FILM = b"\x1aE\xdf\xa3\x93B\x82\x84webm" + bytes(100)
HELD = [
    "clip.mp4#t=0.0", "clip.mp4#t=2.0", "sub/odd ü #1?.webm", "one.png", "one.png#t=1.0", "text.mp4#t=0.0",
    "link.mp4#t=0.0", "linked/outside.mp4", "../outside.mp4", "/etc/passwd", "pipe.mp4#t=0.0", "gone.mp4#t=0.0",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path, image):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for path in (folder / "clip.mp4", folder / "private.mp4", tmp_path / "outside.mp4"):
        path.write_bytes(CLIP)
    (folder / "sub" / "odd ü #1?.webm").write_bytes(FILM)
    (folder / "one.png").write_bytes(image())
    (folder / "text.mp4").write_text("no video")
    (folder / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.mp4")
    return folder


@pytest.fixture
def client(photos, model, tmp_path):
    build(tmp_path / "i", [SparseRows.from_bags([{3: 1.0}] * len(HELD), ids=HELD)])
    app = create_app(tmp_path / "i", model, hosts=checked_names(["localhost"]), photos=photos)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def get(client, target, **headers):
    """A request whose path goes out as it is: httpx would tidy it up."""
    request = client.build_request("GET", "http://localhost/", headers=headers)
    request.url = httpx.URL("http://localhost/").copy_with(raw_path=target.encode("latin-1"))
    return client.send(request)


def test_whole_and_in_parts(client, tmp_path):
    whole = get(client, "/video/clip.mp4%23t=2.0")
    assert whole.status_code == 200 and whole.content == CLIP and whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-type"] == "video/mp4" and whole.headers["x-content-type-options"] == "nosniff"
    assert str(tmp_path) not in str(whole.headers) and "clip" not in str(whole.headers)
    film = get(client, "/video/sub/" + quote("odd ü #1?.webm"))
    assert film.content == FILM and film.headers["content-type"] == "video/webm"
    size = len(CLIP)
    for asked, first, last in (
        ("0-0", 0, 0),
        ("1000-1999", 1000, 1999),
        ("70000-", 70000, size - 1),
        ("-5", size - 5, size - 1),
    ):
        part = get(client, "/video/clip.mp4%23t=2.0", range=f"bytes={asked}")
        assert part.status_code == 206 and part.content == CLIP[first : last + 1]
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
    numbers = client.get("/metrics").text
    assert 'lexlip_requests_total{path="/video/",status="206"} 4.0' in numbers and "clip" not in numbers
    beyond = get(client, "/video/clip.mp4%23t=2.0", range=f"bytes={size}-")
    assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{size}"


def test_a_file_that_changes_is_not_mixed(client, photos):
    """The rest of what it was is not made up with what it is."""
    tag = get(client, "/video/clip.mp4%23t=2.0").headers["etag"]
    again = {"range": "bytes=10-19", "if-range": tag}
    assert get(client, "/video/clip.mp4%23t=2.0", **again).content == CLIP[10:20]
    (photos / "clip.mp4").write_bytes(CLIP + b"more")
    assert get(client, "/video/clip.mp4%23t=2.0", **again).content == CLIP + b"more"
    (photos / "clip.mp4").write_bytes((photos / "one.png").read_bytes())
    assert get(client, "/video/clip.mp4%23t=2.0").json()["error"]["code"] == "no_video"
    (photos / "clip.mp4").unlink()
    gone = get(client, "/video/clip.mp4%23t=2.0")
    assert gone.status_code == 404 and gone.json()["error"]["code"] == "no_photo"


HOSTILE = [
    ("../outside.mp4", "not_found"), ("..%2foutside.mp4", "no_photo"), ("%2e%2e%2foutside.mp4", "no_photo"),
    ("sub/../../outside.mp4", "not_found"), ("%2fetc%2fpasswd", "no_photo"), ("a/../../etc/passwd", "not_found"),
    ("linked/outside.mp4", "no_photo"), ("link.mp4%23t=0.0", "no_photo"), ("private.mp4", "no_document"),
    ("clip.mp4", "no_document"), ("clip.mp4%23t=9.0", "no_document"), ("one.png", "no_video"),
    ("one.png%23t=1.0", "no_video"), ("text.mp4%23t=0.0", "no_video"), ("pipe.mp4%23t=0.0", "no_photo"),
    ("gone.mp4%23t=0.0", "no_photo"), ("clip.mp4%23t=2.0%00", "no_document"), ("a" * 5000, "no_document"),
    ("%ff%fe", "no_document"), ("", "no_document"),
]  # fmt: skip


def test_hostile_ids(client, tmp_path):
    for id, code in HOSTILE:
        answer = get(client, f"/video/{id}", range="bytes=0-9")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, code), id
        assert str(tmp_path) not in answer.text and "passwd" not in answer.text and "Traceback" not in answer.text


def test_another_host_and_a_service_without_a_page(client, photos, model, tmp_path):
    for host in ("evil.example.org", "localhost.evil.example.org", ""):
        refused = get(client, "/video/clip.mp4%23t=2.0", host=host)
        assert refused.status_code == 421 and b"ftyp" not in refused.content
    for options, code in (({"photos": photos, "page": False}, "not_found"), ({}, "no_photo")):
        with TestClient(create_app(tmp_path / "i", model, **options)) as other:
            assert get(other, "/video/clip.mp4%23t=2.0").json()["error"]["code"] == code


def test_what_was_looked_at_is_sent(photos, tmp_path):
    """Whatever has the file's name by then."""
    clip = photos / "clip.mp4"
    with pytest.raises(OSError):
        VideoResponse(photos / "link.mp4")
    for other in (photos, photos / "pipe.mp4", photos / "text.mp4"):
        with pytest.raises((OSError, ValueError)):
            VideoResponse(other)
    for headers, content in (({}, CLIP), ({"range": "bytes=70000-"}, CLIP[70000:])):
        clip.unlink()
        clip.write_bytes(CLIP)
        response = VideoResponse(clip)
        clip.unlink()
        clip.symlink_to(tmp_path / "secret")
        assert TestClient(response).get("/", headers=headers).content == content
        assert response._file.closed


def test_too_many_open_files(client, monkeypatch):
    """The video is still there: its player is to try again."""

    def full(self, path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(VideoResponse, "__init__", full)
    answer = get(client, "/video/clip.mp4%23t=2.0")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy") and answer.headers["retry-after"]


def test_a_video_takes_no_place_from_photos(photos, model, tmp_path, monkeypatch):
    """One plays on: another is turned away, photos are shown."""
    build(tmp_path / "i", [SparseRows.from_bags([{3: 1.0}] * 2, ids=["clip.mp4", "one.png"])])
    app = create_app(tmp_path / "i", model, Limits(concurrency=1), photos=photos)

    async def work():
        playing, free = asyncio.Event(), asyncio.Event()

        async def plays(self, scope, receive, send):
            playing.set()
            await free.wait()
            await Response()(scope, receive, send)

        monkeypatch.setattr(VideoResponse, "__call__", plays)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            first = asyncio.create_task(client.get("/video/clip.mp4"))
            await playing.wait()
            answers = [await client.get(f"/{path}") for path in ("video/clip.mp4", "image/one.png")]
            free.set()
            return [await first, *answers]

    assert [answer.status_code for answer in asyncio.run(work())] == [200, 503, 200]


def test_a_photo_that_becomes_a_video_between_two_looks_is_read_as_a_photo(client, photos, monkeypatch):
    """Its frames would be made in the service, without the decoder's limits."""

    def swap(path, id):
        (photos / "one.png").write_bytes(CLIP)

    monkeypatch.setattr("lexlip.serve.photos.moment_in", swap)
    monkeypatch.setattr("lexlip.sync.video.frame_at", lambda *_: pytest.fail("made in the service"))
    assert get(client, "/image/one.png").status_code == 422
