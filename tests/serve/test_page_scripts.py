"""The page's scripts in Node, with as little of a browser as they touch; test_browser.py has a whole one."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")
PAGE = Path(__file__).resolve().parents[2] / "lexlip" / "serve" / "page"
pytestmark = pytest.mark.skipif(not NODE, reason="needs Node")


@pytest.fixture
def node(tmp_path):
    """Runs a script beside the page's own; gives what it says."""
    page = shutil.copytree(PAGE, tmp_path / "page")
    (page / "package.json").write_text(json.dumps({"type": "module"}))
    shutil.copy(Path(__file__).parent / "page_browser.js", page / "browser.js")

    def run(script):
        (page / "test.js").write_text('import "./browser.js";\n' + script)
        done = subprocess.run([NODE, page / "test.js"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_a_word_that_is_needed_can_be_seen_and_taken_back(node):
    """Also without a weight, as an address can have it."""
    found = node("""
        const [queries, { showTerms }, { openMenu }] =
          await Promise.all(["state", "terms", "menu"].map((name) => import(`./${name}.js`)));
        let state = { ...queries.nothing(), words: { dog: 1 }, required: { cat: 0.1 } };
        const change = (next) => { state = next; };
        showTerms(state, change);
        const row = find("query").children.map((each) => [each.dataset.word, each.className]);
        openMenu(document.createElement("button"), "cat", state, change);
        const menu = find("menu").children;
        const ways = menu.map((each) => each.textContent);
        menu.find((each) => each.textContent === "Need not be there").onclick();
        console.log(JSON.stringify({ row, ways, state }));
    """)
    assert found["row"] == [["cat", "term must"], ["dog", "term"]]
    assert found["ways"] == ["Add", "Need not be there", "Never"]
    assert found["state"]["required"] == {} and found["state"]["words"] == {"dog": 1}


def test_a_moment_of_a_video_says_when(node):
    ids = ["clip.mp4#t=12.0", "a/b.mp4#t=72.5", "c.mp4#t=3725", "photo.jpg", 7, "#t=1"]
    said = node(f"""
        const {{ momentOf, secondOf }} = await import("./dom.js");
        console.log(JSON.stringify([momentOf, secondOf].map((of) => {json.dumps([*ids, "d.MOV"])}.map(of))));
    """)
    assert said[0] == ["at 0:12", "at 1:12", "at 1:02:05", "", "", "", ""]
    assert said[1] == [12, 72.5, 3725, None, None, None, 0]


def test_a_photo_is_searched_for_alone(node):
    """At most as many results as the service gives; not followed by the text that was being written."""
    found = node("""
        await import("./main.js");
        asked.length = 0;
        find("text").value = "a dog";
        fire(find("text"), "input");
        const files = [new File(["x"], "a.png", { type: "image/png" })];
        fire(null, "drop", { dataTransfer: { types: ["Files"], files } });
        await sleep(300);
        const searches = asked.filter(([path]) => path === "/search").map(([, body]) => body.get?.("k") ?? body);
        const before = find("sample").hidden;
        fire(null, "popstate");
        console.log(JSON.stringify({ searches, sample: [before, find("sample").hidden] }));
    """)
    assert found == {"searches": ["10"], "sample": [False, True]}


def test_what_is_needed_explains_an_empty_answer(node):
    said = node("""
        location.hash = "#" + new URLSearchParams({ words: '{"dog":1}', required: '{"cat":0}', without: '{"sea":0}' });
        await import("./main.js");
        await sleep(50);
        console.log(JSON.stringify(texts(find("empty"))));
    """)
    assert "Perhaps because sea is forbidden and cat is needed." in said
