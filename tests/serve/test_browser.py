"""The page under a real browser: what a person types, clicks, points at and drops.

Needs Playwright for Python and a Chromium: Debian's package `chromium`, or the one that LEXLIP_CHROMIUM names.
"""

import base64
import os
import shutil
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(module, reason="needs the extra serve")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
CHROMIUM = os.environ.get("LEXLIP_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium; LEXLIP_CHROMIUM names it")

import uvicorn  # noqa: E402

from lexlip import LexLIP  # noqa: E402
from lexlip.index import Index, SparseRows, build  # noqa: E402
from lexlip.serve.app import create_app  # noqa: E402
from lexlip.serve.hosts import checked_names  # noqa: E402
from lexlip.serve.server import Server  # noqa: E402

QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
COUNT = 24


@contextmanager
def serving(*arguments, **options):
    """The address of a service in a thread."""
    app = create_app(*arguments, hosts=checked_names([]), **options)
    server = Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while thread.is_alive() and not server.started:  # a minute where others keep the machine busy
            time.sleep(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield browser
        browser.close()


@contextmanager
def opened(browser, address, told=None, **options):
    """A page that may talk to its own service alone, and may not complain, but of answers with the status `told`."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    context.close()
    others = [line for line in said if told is None or f"responded with a status of {told}" not in line]
    assert others == [] and all(url.startswith((address, "blob:")) for url in asked)


@pytest.fixture
def photos(tmp_path, image):
    (tmp_path / "photos" / "a folder").mkdir(parents=True)
    for number in range(COUNT):
        name = f"a folder/{number}.png" if number % 2 else f"{number}.png"
        (tmp_path / "photos" / name).write_bytes(image(number, (60, 80)))
    return tmp_path / "photos"


@pytest.fixture
def index(photos, model, tmp_path):
    """The photos by some of the tiny model's words each, drawn at random: what it sees itself is alike in all."""
    names, rng = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png")), np.random.default_rng(0)
    words = [term for word, term in model.tokenizer.get_vocab().items() if word.isalpha()]
    bags = [{int(term): float(rng.random()) + 0.1 for term in rng.choice(words, 9, False)} for _ in names]
    build(tmp_path / "of_photos", [SparseRows.from_bags(bags, ids=names)])
    return Index.open(tmp_path / "of_photos", model)


@pytest.fixture
def service(photos, model, index):
    with serving(index.folder, model, photos=photos) as address:
        yield address


def ids(page):
    return page.eval_on_selector_all(".tile", "tiles => tiles.map((tile) => tile.dataset.id)")


def settled(page, before=None):
    """The ids of the tiles, once the search has ended, and differ from those before."""
    page.wait_for_function(
        "(before) => { const now = [...document.querySelectorAll('.tile')].map((tile) => tile.dataset.id);"
        "return !document.querySelector('#results.waiting') && now.length && now.join() !== before; }",
        arg=",".join(before or []),
    )
    return ids(page)


def search(page, text):
    page.fill("#text", text)
    page.keyboard.press("Enter")
    return settled(page)


def words_of(page):
    """The query as the page has it in its address."""
    return page.evaluate(
        "() => { const given = new URLSearchParams(location.hash.slice(1));"
        "return Object.fromEntries([...given].map(([k, v]) => [k, k === 'q' ? v : JSON.parse(v)])); }"
    )


def test_a_search_its_words_and_their_places(browser, service, photos, model, index):
    with opened(browser, service) as page:
        assert page.inner_text("#empty h1") == f"{COUNT} photos" and page.locator("#empty .chip").count() > 3
        found = search(page, "red dot")
        assert found == [hit.id for hit in index.search("red dot", 60)]
        page.wait_for_function(
            "() => [...document.querySelectorAll('.tile img')].slice(0, 8).every((i) => i.naturalWidth)"
        )
        assert all(page.eval_on_selector_all(".tile img", "images => images.map((image) => image.alt)"))

        # Pointing at a word: the strongest patch is the model's, in the frame's place and in the canvas.
        tile = page.locator(".tile").nth(1)
        chip = tile.locator(".chip").first
        word = chip.get_attribute("data-word")
        chip.hover()
        heat = tile.locator(".heat.on")
        heat.wait_for()
        weights = model.attribute(photos / found[1], word)[0]
        row, column = divmod(int(weights.argmax()), weights.shape[1])
        assert [heat.get_attribute(f"data-{name}") for name in ("word", "row", "column")] == [
            word,
            str(row),
            str(column),
        ]
        clear = heat.locator("canvas").evaluate(
            "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
            ".filter((_, place) => place % 4 === 3)"
        )
        assert clear.index(min(clear)) == int(weights.argmax()) and len(clear) == weights.numel()
        page.mouse.move(5, 5)
        heat.wait_for(state="detached")

        # Forbidding it: the hits that have it are gone; going back brings them back.
        chip.click()
        page.wait_for_selector("#menu:popover-open")
        heat.wait_for()  # a finger points at nothing: what was tapped stays to be seen
        page.click("#menu .never")
        fewer = settled(page, found)
        asked = words_of(page)
        assert asked["without"] == {word: 0} and word not in asked["words"]
        assert (
            fewer == [hit.id for hit in index.search(asked["words"], 60, without={word: 0.0})] and found[1] not in fewer
        )
        page.go_back()
        assert settled(page, fewer) == found and page.input_value("#text") == "red dot"

        # Raising, adding and needing a word, and a slider.
        page.locator(".tile .chip").first.click()
        page.keyboard.press("+")
        page.wait_for_function("() => location.hash.includes('words=')")
        page.locator("#facets .chip").first.click()
        page.keyboard.press("!")
        page.wait_for_function("() => location.hash.includes('required=')")
        page.wait_for_function("() => !document.querySelector('#results.waiting')")
        slider = page.locator("#query .term input").last
        moved = slider.evaluate("slider => slider.closest('.term').dataset.word")
        before = words_of(page)["words"][moved]
        slider.focus()
        page.keyboard.press("End")
        page.wait_for_function("() => !document.querySelector('#results.waiting')")
        page.wait_for_timeout(300)
        asked = words_of(page)
        assert asked["words"][moved] > before
        assert settled(page) == [hit.id for hit in index.search(asked["words"], 60, required=asked["required"])]
        page.click(f"#query .term[data-word={moved}] .word")
        page.keyboard.press("Backspace")
        page.wait_for_selector(f"#query .term[data-word={moved}]", state="detached")
        assert moved not in words_of(page)["words"]


DROP = """(data) => {
  const moved = new DataTransfer();
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  moved.items.add(new File([bytes], "my.png", { type: "image/png" }));
  for (const kind of ["dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: moved, bubbles: true, cancelable: true }));
}"""


def test_a_photo_that_is_dropped_or_chosen(browser, service, photos, model, index):
    with opened(browser, service) as page:
        for name, way in (("a folder/3.png", "drop"), ("8.png", "choose")):
            data = (photos / name).read_bytes()
            with page.expect_response("**/search"):
                if way == "choose":
                    page.set_input_files("#file", {"name": "my.png", "mimeType": "image/png", "buffer": data})
                else:
                    page.evaluate(DROP, base64.b64encode(data).decode())
            assert settled(page) == [hit.id for hit in index.search(model.encode_image(photos / name)[0], 60)]
            assert page.is_visible("#sample") and page.is_hidden("#drop")
        page.click("#clear")
        page.wait_for_selector("#empty h1")
        assert page.is_hidden("#sample")


def test_by_keyboard_alone(browser, service):
    with opened(browser, service) as page:
        page.wait_for_selector("#empty h1")
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("/")
        page.keyboard.type("re")
        page.wait_for_selector("#suggestions li[data-word=red]")
        places = page.eval_on_selector_all("#suggestions li", "items => items.map((item) => item.dataset.word)")
        for _ in range(places.index("red") + 1):
            page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert page.input_value("#text") == "red" and page.is_hidden("#suggestions")
        page.keyboard.press("Enter")
        found = settled(page)
        page.focus(".tile .photo")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.className").startswith("chip")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open]")
        assert page.inner_text("dialog h2") == found[1]
        page.keyboard.press("ArrowRight")
        assert page.inner_text("dialog h2") == found[2]
        page.focus("dialog .words button")
        page.wait_for_selector("dialog .heat.on")
        page.keyboard.press("Enter")
        page.wait_for_selector("#menu:popover-open")
        page.keyboard.press("Escape")
        assert page.is_visible("dialog[open]") and page.is_hidden("#menu")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
        page.wait_for_function("(id) => document.activeElement.closest('.tile')?.dataset.id === id", arg=found[2])


def test_a_telephone_in_the_dark(browser, service):
    backgrounds = []
    for scheme in ("light", "dark"):
        with opened(browser, service, color_scheme=scheme) as page:
            page.set_viewport_size({"width": 360, "height": 740})
            search(page, "red dot blue")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            page.locator(".tile .photo").first.click()
            page.wait_for_selector("dialog[open] img")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert backgrounds[0] != backgrounds[1]


def test_nothing_found_and_what_is_wrong_is_said(browser, photos, model, tmp_path):
    build(tmp_path / "one", [SparseRows.from_bags([{model.tokenizer.get_vocab()["red"]: 1.0}], ids=["0.png"])])
    with serving(tmp_path / "one", model) as address, opened(browser, address) as page:
        assert "--photos" in page.inner_text("#empty")  # where the photos lie is not known
        page.fill("#text", "red^1")
        page.keyboard.press("Enter")
        settled(page)
        assert page.inner_text(".tile .name") == "0.png"
        page.locator(".tile .chip").click()
        page.click("#menu .never")
        page.wait_for_selector("#empty h1")
        assert page.inner_text("#empty h1") == "Nothing to look for"
        page.reload()
        page.wait_for_selector("#query .term.never")
        page.click("#query .term.never .x")
        page.wait_for_selector("#empty .try")


MIDDLE = """(video) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  canvas.getContext("2d").drawImage(video, 0, 0, 1, 1);
  return [...canvas.getContext("2d").getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""


def test_a_video_opens_at_its_moment(browser, model_folder, model, tmp_path):
    pytest.importorskip("av", reason="needs the extra video")
    from clips import COLOURS, make_clip

    from lexlip.cli import main

    videos, index = tmp_path / "videos", str(tmp_path / "index")
    make_clip(videos / "clip.webm", "libvpx")
    make_clip(videos / "old.avi", "mpeg4")  # which browsers do not play
    assert main(["sync", str(videos), "--index", index, "--model", str(model_folder), "--video-seconds", "2"]) == 0
    with serving(index, model, photos=True) as address, opened(browser, address, told=503) as page:
        assert sorted(search(page, "red dot")) == [
            f"{name}#t={t}.0" for name in ("clip.webm", "old.avi") for t in (0, 2, 4)
        ]
        page.click(".tile[data-id='clip.webm#t=4.0'] .photo")
        video = page.locator("dialog video")
        page.wait_for_function("() => document.querySelector('dialog video').readyState >= 2")
        assert abs(video.evaluate("video => video.currentTime") - 4) < 0.2
        assert np.abs(np.array(video.evaluate(MIDDLE)) - COLOURS[2]).max() < 40
        assert video.evaluate("video => [video.controls, video.paused]") == [True, True]

        # A word is shown on the frame that was found.
        page.locator("dialog .words button").first.hover()
        page.wait_for_selector("dialog .heat.on")
        assert video.evaluate("video => getComputedStyle(video).opacity") == "0"
        page.mouse.move(5, 5)
        page.wait_for_function("() => getComputedStyle(document.querySelector('dialog video')).opacity === '1'")

        # It plays, also while the search changes, and is silent once it is closed.
        video.evaluate("video => video.play()")
        page.locator("dialog .words button").first.click()
        with page.expect_response("**/search"):
            page.keyboard.press("+")
        page.wait_for_function("() => document.querySelector('dialog video').currentTime > 4.6")
        player = page.evaluate_handle("document.querySelector('dialog video')")
        page.click("dialog .close")
        page.wait_for_selector("dialog[open]", state="detached")
        page.wait_for_function("video => video.paused", arg=player)

        # The service has no place for a moment.
        page.route("**/video/**", lambda route: route.fulfill(status=503, json={"error": {"message": "busy"}}))
        page.click(".tile[data-id='clip.webm#t=4.0'] .photo")
        again = page.locator("dialog .hint button")
        again.wait_for()
        assert page.inner_text("dialog .side .hint >> nth=0") == "busy Try again" and video.is_hidden()
        page.unroute("**/video/**")
        again.click()
        page.wait_for_function("() => document.querySelector('dialog video').readyState >= 2")
        assert video.is_visible() and not again.is_visible()
        assert abs(video.evaluate("video => video.currentTime") - 4) < 0.2
        assert page.evaluate("document.activeElement.tagName") == "VIDEO"
        page.click("dialog .close")
        page.wait_for_selector("dialog[open]", state="detached")

        # It had none when the player asked, and has one when the page looks why.
        page.route("**/video/**", lambda route: route.fulfill(status=503), times=1)
        page.click(".tile[data-id='clip.webm#t=2.0'] .photo")
        page.wait_for_function("() => document.querySelector('dialog video').readyState >= 2")
        assert video.is_visible() and abs(video.evaluate("video => video.currentTime") - 2) < 0.2
        page.click("dialog .close")
        page.wait_for_selector("dialog[open]", state="detached")

        page.click(".tile[data-id='old.avi#t=2.0'] .photo")
        page.wait_for_selector("dialog .hint a")
        assert page.inner_text("dialog .side .hint >> nth=0") == "This browser cannot play the video: download it."
        with page.expect_download() as download:
            page.click("dialog .hint a")
        assert download.value.suggested_filename == "old.avi"
        assert download.value.path().read_bytes() == (videos / "old.avi").read_bytes()


@pytest.mark.slow
def test_six_hundred_photos_from_sync_to_the_page(browser, shared, tmp_path, monkeypatch):
    """Real photos and the model that comes along: a search, a word's place, a forbidden word, a photo."""
    from lexlip.cli import main

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(shared("data", "flickr8k", "images").iterdir())[:600]:
        shutil.copy(path, photos)
    assert main(["sync", str(photos), "--index", str(tmp_path / "index")]) == 0
    model = LexLIP.from_pretrained("photos-small")
    index = Index.open(tmp_path / "index", model)
    with serving(tmp_path / "index", model, photos=True) as address, opened(browser, address) as page:
        assert page.inner_text("#empty h1") == "600 photos"
        found = search(page, "a dog runs on the grass")
        assert found == [hit.id for hit in index.search("a dog runs on the grass", 60)]
        page.wait_for_function("() => document.querySelector('.tile img')?.naturalWidth")
        tile = page.locator(".tile").first
        chip = tile.locator(".chip[data-word=dog]")
        chip.hover()
        heat = tile.locator(".heat.on")
        heat.wait_for()
        weights = model.attribute(photos / found[0], "dog")[0]
        place = int(heat.get_attribute("data-row")) * 7 + int(heat.get_attribute("data-column"))
        assert place == int(weights.argmax()) and weights.shape == (7, 7)
        chip.click()
        page.click("#menu .never")
        fewer = settled(page, found)
        assert not set(fewer) & {hit.id for hit in index.search({"dog": 1.0}, 600)}
        with page.expect_response("**/search"):
            page.set_input_files("#file", photos / found[3])
        assert settled(page, fewer)[0] == found[3]
