"""The page's routes in this process: photos, thumbnails, words, patches; and who is refused."""

import io
import json
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(module, reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs the extra dev")

from fastapi.testclient import TestClient  # noqa: E402

from lexlip.encode.files import FolderImages  # noqa: E402
from lexlip.encode.run import encode  # noqa: E402
from lexlip.errors import EncodingError  # noqa: E402
from lexlip.index import Index, SparseRows, build  # noqa: E402
from lexlip.index.shards import read_shards  # noqa: E402
from lexlip.serve.app import create_app  # noqa: E402
from lexlip.serve.hosts import checked_names  # noqa: E402
from lexlip.serve.limits import Limits  # noqa: E402
from lexlip.serve.thumbnails import ThumbnailCache  # noqa: E402
from lexlip.serve.vocabulary import WordsOfTerms  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "lexlip" / "serve" / "page"
NAMES = ["one.png", "sub/two.png", "odd ü #1?.png", "wide.png"]


@pytest.fixture
def photos(tmp_path, image):
    """A folder of photos, files that are none of the index, and links that lead out."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(image(number, (60, 100) if name == "wide.png" else (48, 40)))
    (folder / "private.png").write_bytes(image(9))
    (tmp_path / "outside.png").write_bytes(image(8))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "text.png").write_text("no photo")
    os.mkfifo(folder / "pipe.png")
    return folder


HELD = [*NAMES, "link.png", "linked/outside.png", "text.png", "pipe.png", "gone.png", "../outside.png", "/etc/passwd"]


@pytest.fixture
def index_of_photos(tmp_path, photos, model):
    """An index of the photos by the model, which also holds ids that must not be followed."""
    words = model.encode_image([photos / name for name in NAMES])
    bags = [{int(t): float(v[t]) for t in v.nonzero()[:, 0]} for v in [*words, *[words[0]] * (len(HELD) - len(NAMES))]]
    build(tmp_path / "of_photos", [SparseRows.from_bags(bags, ids=HELD)])
    return tmp_path / "of_photos"


@pytest.fixture
def client(index_of_photos, photos, model, tmp_path):
    cache = ThumbnailCache(tmp_path / "cache", 1 << 20)
    limits = Limits(max_pixels=10_000, max_file=40_000)
    app = create_app(index_of_photos, model, limits, checked_names(["localhost"]), photos=photos, cache=cache)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def path(id):
    from urllib.parse import quote

    return "/".join(quote(part, safe="") for part in id.split("/"))


@pytest.mark.parametrize("id", NAMES)
def test_photos_are_shown_as_new_jpegs(client, photos, id):
    answer = client.get(f"/thumbnail/{path(id)}?side=160")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
    shown, own = Image.open(io.BytesIO(answer.content)), Image.open(photos / id)
    assert shown.size == own.size and shown.format == "JPEG" and not shown.getexif()
    difference = np.asarray(shown.convert("RGB").resize((8, 8)), int) - np.asarray(own.resize((8, 8)), int)
    assert abs(difference).max() < 40
    assert client.get(f"/image/{path(id)}").status_code == 200
    again = client.get(f"/thumbnail/{path(id)}?side=160", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304 and not again.content


def test_a_thumbnail_has_at_most_so_many_pixels_and_nothing_of_the_file(client, photos):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "where I live", 6
    Image.fromarray(np.zeros((30, 99, 3), np.uint8)).resize((330, 30)).save(photos / "one.png", exif=exif)
    answer = client.get("/thumbnail/one.png?side=160")
    assert Image.open(io.BytesIO(answer.content)).size == (29, 320)  # turned, at most twice as long as `side`
    assert b"where I live" not in answer.content


def test_a_changed_file_is_shown_anew_and_a_kept_one_is_not_decoded(client, photos, image, tmp_path, monkeypatch):
    first = client.get("/thumbnail/one.png")
    kept = list((tmp_path / "cache").glob("??/*.jpg"))
    assert len(kept) == 1 and kept[0].read_bytes() == first.content
    from lexlip.serve.decode import Decoders

    with monkeypatch.context() as patch:
        patch.setattr(Decoders, "jpeg", lambda *_: 1 / 0)
        assert client.get("/thumbnail/one.png").content == first.content
    (photos / "one.png").write_bytes(image(77, (50, 50)))
    assert client.get("/thumbnail/one.png").content != first.content
    assert client.get("/thumbnail/one.png").headers["etag"] != first.headers["etag"]


def test_the_cache_keeps_the_newest_within_its_bytes(tmp_path, caplog):
    cache = ThumbnailCache(tmp_path / "cache", 1000)
    jpeg = b"\xff\xd8" + bytes(196) + b"\xff\xd9"
    keys = [f"{number:032x}" for number in range(20)]
    for number, key in enumerate(keys):
        cache.put(key, jpeg)
        os.utime(cache._path(key), (number, number))
        assert sum(file.stat().st_size for file in (tmp_path / "cache").glob("*/*")) <= 1000
    assert cache.get(keys[-1]) == jpeg and cache.get(keys[0]) is None
    cache.put("f" * 32, bytes(2000))
    assert cache.get("f" * 32) is None  # larger than all of it
    cache._path(keys[-1]).write_bytes(jpeg[:50])
    assert cache.get(keys[-1]) is None  # cut short
    left = tmp_path / "cache" / "00" / "0123456789abcdef.tmp"
    left.write_bytes(jpeg)
    os.utime(left, (0, 0))
    ThumbnailCache(tmp_path / "cache", 1000).put(keys[0], jpeg)
    assert not left.exists()  # what a process left behind that was killed
    (tmp_path / "file").write_text("")
    unwritable = ThumbnailCache(tmp_path / "file" / "cache", 1000)
    for key in keys:
        unwritable.put(key, jpeg)
    assert unwritable.get(keys[0]) is None and len([r for r in caplog.records if "not kept" in r.message]) == 1


def test_files_are_read_one_by_one(index_of_photos, photos, model, monkeypatch):
    """However many are asked for, no more files are in memory than there are decoders."""
    from lexlip.serve import photos as module

    now, most, read = [], [], module.read_image

    def slowly(*arguments):
        now.append(1)
        most.append(len(now))
        time.sleep(0.02)
        now.pop()
        return read(*arguments)

    monkeypatch.setattr(module, "read_image", slowly)
    with TestClient(create_app(index_of_photos, model, photos=photos)) as client:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: client.get("/thumbnail/one.png").status_code, range(16)))
    assert set(answers) == {200} and len(most) == 16 and max(most) == 1


# In the process that decodes: a frame is what the file holds, and one at 3 s takes for ever.
_FRAMES = """
import time
from lexlip.sync import video
def frame_at(path, seconds):
    with open(path.parent / "asked.txt", "a") as file:
        print(path.name, seconds, file=file)
    return path.read_bytes() if seconds != 3 else time.sleep(60)
video.frame_at = frame_at
"""


def test_a_moment_of_a_video_is_its_frame(tmp_path, photos, model, image, monkeypatch):
    """Made where it can be killed, not in the service."""
    from lexlip.serve import decode

    (photos / "clip.mp4").write_bytes(image(5))
    monkeypatch.setattr(decode, "_CODE", _FRAMES + decode._CODE)
    ids = ["clip.mp4#t=1.0", "clip.mp4#t=2.5"]
    bags = [{3: 1.0}, {3: 2.0}, {3: 3.0}]
    build(tmp_path / "moments", [SparseRows.from_bags(bags, ids=[*ids, "clip.mp4#t=3.0"])])
    cache, limits = ThumbnailCache(tmp_path / "cache", 1 << 20), Limits(decode_seconds=1.0)
    with TestClient(create_app(tmp_path / "moments", model, limits, photos=photos, cache=cache)) as client:
        for id in ids * 2:
            assert client.get(f"/thumbnail/{path(id)}").status_code == 200
        assert client.get("/thumbnail/clip.mp4%23t=9.0").status_code == 404
        refused = client.get(f"/thumbnail/{path('clip.mp4#t=3.0')}")
        assert refused.status_code == 422 and "more than 1 seconds" in refused.json()["error"]["message"]
    assert (photos / "asked.txt").read_text().splitlines() == ["clip.mp4 1.0", "clip.mp4 2.5", "clip.mp4 3.0"]


def raw(client, target, **headers):
    """A request whose path goes out as it is: httpx would tidy it up."""
    import httpx

    request = client.build_request("GET", "http://localhost/", headers=headers)
    request.url = httpx.URL("http://localhost/").copy_with(raw_path=target.encode("latin-1"))
    return client.send(request)


HOSTILE = [
    ("/thumbnail/../outside.png", 404), ("/thumbnail/..%2foutside.png", 404), ("/thumbnail/%2e%2e%2foutside.png", 404),
    ("/image/sub/../../outside.png", 404), ("/image/..%5coutside.png", 404), ("/thumbnail//etc/passwd", 404),
    ("/thumbnail/%2fetc%2fpasswd", 404), ("/image/%252e%252e%252foutside.png", 404), ("/thumbnail/link.png", 404),
    ("/image/linked/outside.png", 404), ("/thumbnail/private.png", 404), ("/image/text.png", 422),
    ("/thumbnail/pipe.png", 404), ("/thumbnail/gone.png", 404), ("/thumbnail/one.png%00.jpg", 404),
    ("/thumbnail/" + "a" * 5000, 404), ("/thumbnail/%ff%fe", 404), ("/thumbnail/", 404),
    ("/thumbnail/one.png?side=100000", 422), ("/thumbnail/one.png?side=-1", 422), ("/thumbnail/one.png?side=161", 422),
    ("/page/..%2fapp.py", 404), ("/page/../app.py", 404), ("/page/", 404), ("/words?limit=100000", 422),
    ("/words?prefix=" + "a" * 5000, 422),
]  # fmt: skip


@pytest.mark.parametrize(("target", "status"), HOSTILE)
def test_hostile_addresses(client, tmp_path, target, status):
    answer = raw(client, target)
    assert answer.status_code == status, answer.text[:200]
    assert answer.json()["error"]["message"] and str(tmp_path) not in answer.text and "Traceback" not in answer.text
    assert "passwd" not in answer.text and "site-packages" not in answer.text


@pytest.mark.parametrize("target", ["/", "/thumbnail/one.png", "/image/one.png", "/words", "/about", "/page/main.js"])
def test_another_host_is_refused_everywhere(client, target):
    for host in ("evil.example.org", "localhost.evil.example.org", ""):
        answer = raw(client, target, host=host)
        assert answer.status_code == 421 and b"\xff\xd8" not in answer.content


def test_photos_that_are_too_much(client, photos, image):
    (photos / "one.png").write_bytes(image(0, (101, 100)))
    assert client.get("/thumbnail/one.png").json()["error"]["code"] == "broken_picture"  # 10,100 pixels
    (photos / "wide.png").write_bytes((photos / "sub/two.png").read_bytes() + bytes(40_000))
    assert client.get("/thumbnail/wide.png").json()["error"]["code"] == "broken_picture"  # bytes
    shutil.rmtree(photos / "sub")
    assert client.get("/thumbnail/sub/two.png").json()["error"]["code"] == "no_photo"


def test_every_answer_is_closed_to_other_pages(client):
    for target in ("/", "/page/main.js", "/about", "/thumbnail/one.png", "/nothing", "/healthz"):
        answer = client.get(target, headers={"origin": "https://evil.example.org"})
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "access-control-allow-origin" not in answer.headers


def test_the_page_is_whole_and_asks_for_nothing_from_elsewhere(client):
    start = client.get("/")
    assert start.status_code == 200 and start.headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/", headers={"if-none-match": start.headers["etag"]}).status_code == 304
    wanted = set(re.findall(r'(?:href|src)="(/page/[^"]+)"', start.text))
    for file in PAGE.glob("*.js"):
        text = file.read_text()
        wanted |= {f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', text)}
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|document\.write", text), file
    for file in PAGE.iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", file.read_text()), file
    assert not re.search(r"<script(?![^>]*src)|\son\w+=|\sstyle=", start.text)  # what the policy forbids
    assert len(wanted) >= 10
    for target in wanted:
        assert client.get(target).status_code == 200, target


def test_what_there_is(client, index_of_photos, model):
    assert client.get("/about").json() == {
        "generation": 1, "documents": len(HELD), "max_k": 1000, "photos": True, "patches": "max",
    }  # fmt: skip
    with TestClient(create_app(index_of_photos, model)) as blind:
        about = blind.get("/about").json()
        assert (about["photos"], about["patches"]) == (False, None)
        assert blind.get("/thumbnail/one.png").json()["error"]["code"] == "no_photo"
    with TestClient(create_app(index_of_photos, model, page=False)) as bare:
        for target in ("/", "/page/main.js", "/thumbnail/one.png", "/image/one.png", "/words", "/about"):
            assert bare.get(target).status_code == 404


def test_folders_that_the_index_remembers(tmp_path, photos, model, image):
    shards, index = tmp_path / "vectors", tmp_path / "remembering"
    shutil.rmtree(photos)
    (photos / "sub").mkdir(parents=True)
    (photos / "sub" / "two.png").write_bytes(image())
    encode(model, FolderImages(photos), shards, id_prefix="holiday/")
    build(index, read_shards([shards]))
    with TestClient(create_app(index, model, photos=True)) as client:
        assert client.get("/about").json()["photos"] is True
        assert client.get("/thumbnail/holiday/sub/two.png").status_code == 200
        assert client.get("/thumbnail/sub/two.png").json()["error"]["code"] == "no_document"
        photos.rename(tmp_path / "elsewhere")
        assert client.get("/thumbnail/holiday/sub/two.png").json()["error"]["code"] == "no_photo"


def test_suggestions(client, index_of_photos, model):
    index = Index.open(index_of_photos)
    words = client.get("/words?prefix=&limit=50").json()["words"]
    counts = [each["documents"] for each in words]
    assert words and counts == sorted(counts, reverse=True) and all(each["word"][0].isalnum() for each in words)
    for each in words[:5]:
        term = model.tokenizer.convert_tokens_to_ids(each["word"])
        assert len(index.search({term: 1.0}, 100)) == each["documents"]
    some = client.get("/words?prefix=R").json()["words"]
    assert all(each["word"].startswith("r") for each in some)


def test_all_words_are_put_in_order_once(index_of_photos, model):
    """Not for every page that is opened; and few words that begin so are found without that."""
    words = WordsOfTerms(model.tokenizer.get_vocab())
    index = Index.open(index_of_photos)
    first = words.suggest(index, "", 50)
    words.terms = {}  # nothing is looked up again
    assert words.suggest(index, "", 50) == first and words.suggest(index, "", 3) == first[:3]
    with pytest.raises(KeyError):
        words.suggest(index, "r", 3)


def test_the_vocabulary_is_read_out_once(index_of_photos, model, monkeypatch):
    with TestClient(create_app(index_of_photos, model)) as client:
        monkeypatch.setattr(model.tokenizer, "get_vocab", None)
        assert client.post("/search", json={"query": "red -dot"}).status_code == 200


def test_words_of_hits_and_of_the_query(client, index_of_photos, model):
    plain = client.post("/search", json={"text": "red dot", "k": 3}).json()
    assert set(plain) == {"generation", "hits", "unknown_words"} and set(plain["hits"][0]) == {"id", "score"}
    found = client.post("/search", json={"text": "red dot", "k": 3, "hit_words": 4}).json()
    assert [hit["id"] for hit in found["hits"]] == [hit["id"] for hit in plain["hits"]]
    index = Index.open(index_of_photos, model)
    for hit in found["hits"]:
        assert len(hit["words"]) == 4
        for each in hit["words"]:
            (share,) = index.explain({each["word"]: 1.0}, hit["id"])
            assert share.document == each["weight"]
    words = {each["word"]: each["weight"] for each in found["query"]["words"]}
    # The query in words finds the same, so a page can go on from there.
    by_words = client.post("/search", json={"words": words, "k": 3}).json()
    assert [hit["id"] for hit in by_words["hits"]] == [hit["id"] for hit in plain["hits"]]
    by_form = client.post("/search", files={"image": b""}, data={"hit_words": "4"})
    assert by_form.status_code == 422


def test_forbidden_and_needed_words(client, index_of_photos, model):
    index = Index.open(index_of_photos, model)
    query = {"words": {"red": 1.0, "dot": 1.0, "blue": 1.0}, "k": 50}
    first = client.post("/search", json={**query, "hit_words": 64}).json()
    weights = {hit["id"]: {each["word"]: each["weight"] for each in hit["words"]} for hit in first["hits"]}
    word, level = next(
        (word, value)
        for word, value in sorted(weights["sub/two.png"].items())
        if word.isalpha() and word not in query["words"] and weights["one.png"].get(word) != value
    )
    for field, keeps in (("without", lambda weight: weight <= level), ("required", lambda weight: weight > level)):
        found = client.post("/search", json={**query, field: {word: level, "no such word": 0}}).json()
        kept = [hit["id"] for hit in first["hits"] if keeps(weights[hit["id"]].get(word, 0))]
        assert [hit["id"] for hit in found["hits"]] == kept and found["unknown_words"] == ["no such word"]
    typed = client.post(
        "/search", json={"query": f"red^1 dot^1 blue^1 -{word}:{level}", "k": 50, "hit_words": 1}
    ).json()
    assert typed["query"]["without"] == {word: level}
    same = index.search({"red": 1.0, "dot": 1.0, "blue": 1.0}, 50, without={word: level})
    assert [(hit["id"], hit["score"]) for hit in typed["hits"]] == [tuple(hit) for hit in same]
    assert client.post("/search", json={"query": "-red"}).json()["error"]["code"] == "invalid_query"


def test_patches_are_the_models(client, photos, model):
    words = ["red", "dot", "no such word"]
    answer = client.post("/explain", json={"words": {"red": 1.0}, "id": "wide.png", "patches": words}).json()
    found, maps = answer["patches"], model.attribute(photos / "wide.png", words[:2])
    assert set(found["maps"]) == {"red", "dot"} and found["pooling"] == "max"
    torch.testing.assert_close(torch.tensor([found["maps"][word] for word in words[:2]]), maps, atol=6e-5, rtol=0)
    box = [found[edge] for edge in ("left", "top", "right", "bottom")]
    assert box == pytest.approx((0.2, 0, 0.8, 1), abs=0.02)  # 100 x 60 pixels
    assert "patches" not in client.post("/explain", json={"words": {"red": 1.0}, "id": "wide.png"}).json()
    for id, status in (("gone.png", 404), ("link.png", 404), ("text.png", 422), ("nowhere", 404)):
        refused = client.post("/explain", json={"words": {"red": 1.0}, "id": id, "patches": ["red"]})
        assert refused.status_code == status, id
    many = {"words": {"red": 1.0}, "id": "one.png", "patches": ["red"] * 65}
    assert client.post("/explain", json=many).status_code == 422


def test_a_model_without_patches(index_of_photos, photos, model, monkeypatch):
    monkeypatch.setattr(type(model), "patch_pooling", None)
    with TestClient(create_app(index_of_photos, model, photos=photos)) as client:
        assert client.get("/about").json()["patches"] is None
        refused = client.post("/explain", json={"words": {"red": 1.0}, "id": "one.png", "patches": ["red"]})
        assert refused.json()["error"]["code"] == "no_patches"


def test_a_photo_that_waits_too_long(index_of_photos, photos, model, monkeypatch):
    from lexlip.serve import photos as module

    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    monkeypatch.setattr(module, "read_image", lambda *_: time.sleep(0.3) or (photos / "one.png").read_bytes())
    with TestClient(create_app(index_of_photos, model, photos=photos)) as client:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.get("/image/one.png"), range(4)))
    assert sorted({answer.status_code for answer in answers}) == [200, 503]
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 503)


def test_a_model_whose_tokens_make_no_grid(index_of_photos, photos, model, monkeypatch):
    def refuse(pixels):
        raise EncodingError("50 tokens make no grid")

    monkeypatch.setattr(model, "patch_states", refuse)
    with TestClient(create_app(index_of_photos, model, photos=photos)) as client:
        refused = client.post("/explain", json={"words": {"red": 1.0}, "id": "one.png", "patches": ["red"]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "no_patches")


def test_numbers_by_route_and_no_place_of_a_text_is_taken(client):
    client.get("/thumbnail/one.png")
    client.get("/thumbnail/sub/two.png")
    numbers = client.get("/metrics").text
    assert 'lexlip_requests_total{path="/thumbnail/",status="200"} 2.0' in numbers
    assert "one.png" not in numbers and json.dumps("sub") not in numbers
