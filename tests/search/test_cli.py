"""lexlip search as a person uses it: words with signs, filters, contact sheets, and what it loads."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from lexlip.cli import main
from lexlip.index import Index, SparseRows, build
from lexlip.index.lookup import TableModel
from lexlip.index.origin import ModelStamp, Origin, Source
from lexlip.pretrained import find

MODEL = find("photos-small")
TOWERS = Path(__file__).parents[1] / "fixtures" / "before_rooms" / "model"


def bags():
    """Six photos in words of the model that comes along."""
    words = TableModel(MODEL).tokenizer.get_vocab()
    plain = {
        "2023/dog.jpg": {"dog": 0.9, "grass": 0.4}, "2024/dog_beach.jpg": {"dog": 0.6, "beach": 0.7},
        "2024/beach.jpg": {"beach": 0.9, "water": 0.4}, "2024/cat.jpg": {"cat": 0.9, "grass": 0.3},
        "2024/IMG_1.jpg": {"dog": 0.5, "cat": 0.6}, "2023/IMG_2.jpg": {"dog": 0.2, "cat": 0.02},
    }  # fmt: skip
    return {name: {words[word]: weight for word, weight in bag.items()} for name, bag in plain.items()}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Of those photos, made by that model, with files for all but one."""
    folder = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(list(bags())[:-1]):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 40 + 30 * number), (40 * number, 90, 160)).save(folder / name, "PNG")
    rows = SparseRows.from_bags(bags().values(), list(bags()))
    stamp = ModelStamp("photos-small", str(MODEL), TableModel(MODEL).fingerprint)
    origin = Origin(stamp, Source(str(folder), "images"))
    build(folder.parent / "i", [SparseRows(rows.ids, rows.offsets, rows.terms, rows.weights, "x", origin)])
    return folder.parent / "i"


@pytest.fixture
def found(index, capsys):
    """Ids that a search prints, in their order."""

    def search(*arguments):
        assert main(["search", "--index", str(index), "--json", *arguments]) == 0
        return [hit["id"].split("/")[1].split(".")[0] for hit in json.loads(capsys.readouterr().out)]

    return search


def test_words_are_wanted_weighed_and_forbidden(found):
    assert found("dog^1") == ["dog", "dog_beach", "IMG_1", "IMG_2"]
    assert found("a dog -cat") == found("dog^1 -cat") == ["dog", "dog_beach"]
    assert found("dog^1 -cat:0.1") == ["dog", "dog_beach", "IMG_2"]
    assert found("+dog +beach") == ["dog_beach"]
    assert found("dog^1 beach^2")[:2] == ["dog_beach", "beach"] and found("dog^3 beach^0.1")[0] == "dog"
    assert found("dog^1 cat^-1")[:2] == ["dog", "dog_beach"] and found("dog^1 cat^-1")[-1] == "IMG_1"
    assert found("grass -dog") == ["cat"] and found('"grass -dog"')[0] in ("dog", "cat")
    assert {"IMG_1", "cat", "dog"} <= {*found("--plain", "dog -cat")}  # - means nothing


def test_filters_and_least_scores(found):
    assert found("dog", "--filter", "path:2024/*") == ["dog_beach", "IMG_1"]
    assert found("dog", "--filter", "path:2024/*", "--filter", "not:name:IMG_*") == ["dog_beach"]
    assert found("dog^1", "--min-score", "0.55") == ["dog", "dog_beach"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dog -beacch"], "'beacch' is no word of the model's vocabulary; near it: beach"),
        (["-dog -cat"], "something to look for"), (["dog", "--filter", "2024/*"], "--filter 2024/*: path:PATTERN"),
        (['"dog'], "a quote that does not end"), (["dog", "--contact-sheet", "x.gif"], ".jpg, .jpeg, .png, .webp"),
        (["dog", "--photos", "nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(index, capsys, words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["search", "--index", str(index), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert main(["search", "dog"]) == 2 and "--index, --photos for" in capsys.readouterr().err


def test_a_contact_sheet_shows_the_photos(index, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["search", "--index", str(index), "dog", "--contact-sheet", str(sheet)]) == 0
    image = Image.open(sheet)
    assert image.size[0] > 4 * 240 and image.size[1] > 240
    blue = {round(red / 40) for _, (red, green, blue) in image.getcolors(1 << 20) if (green, blue) == (90, 160)}
    assert {0, 1, 4} <= blue and 2 not in blue  # the beach alone is not found
    build(tmp_path / "bare", [SparseRows.from_bags(bags().values(), list(bags()))])
    words = ["search", "--index", str(tmp_path / "bare"), "dog^1", "--contact-sheet", str(sheet)]
    assert main(words) == 2 and "does not know where its photos are" in capsys.readouterr().err


@pytest.mark.parametrize("query", ["dog^1 -cat", "a dog on the beach -cat"])
def test_a_query_of_words_or_text_loads_nothing_heavy(index, query):
    """What a cold start costs is what is loaded: no torch, numba, pandas, and no writer's libraries."""
    words = [sys.executable, "-X", "importtime", "-m", "lexlip.cli", "search", "--index", str(index), query]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and "dog" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {"torch", "transformers", "numba", "pandas", "PIL", "tqdm", "filelock", "pyarrow.compute", "urllib.request"}
    assert "numpy" in loaded and not heavy & loaded


TRAINERS = ["pytorch_lightning", "lightning_fabric", "tensorboard", "wandb"]
TOWERS_NEED = ["torchvision", "timm", "transformers.modeling_utils", "torch._dynamo", "torch.distributed.tensor"]
ENCODES = """
import sys
from lexlip.index.index import loaded_model
model, _ = loaded_model(sys.argv[1], False)
print(model.encode_text(["a dog"]).shape)
print(*[name for name in sys.argv[2:] if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("model", "unwanted"),
    [("photos-small", TRAINERS + TOWERS_NEED), (str(TOWERS), TRAINERS)],
    ids=["frozen", "trained"],
)
def test_a_text_loads_no_trainer_and_no_towers_that_its_model_lacks(model, unwanted):
    """Of trained towers, transformers' BERT loads torchvision and torch._dynamo by itself."""
    done = subprocess.run([sys.executable, "-c", ENCODES, model, *unwanted], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == ""


def test_another_model_is_refused(index, tmp_path, capsys):
    assert main(["search", "--index", str(index), "--model", "photos-small", "dog"]) == 0
    build(tmp_path / "i", [_of_model("other")])
    assert main(["search", "--index", str(tmp_path / "i"), "--model", "photos-small", "a dog"]) == 2
    assert "its vectors were made by other" in capsys.readouterr().err


def test_a_model_that_was_trained_anew_is_refused_for_words_too(tmp_path, capsys):
    shutil.copytree(MODEL, tmp_path / "m")
    rows = SparseRows.from_bags(bags().values(), list(bags()))
    origin = Origin(ModelStamp("m", str(tmp_path / "m"), TableModel(MODEL).fingerprint), None)
    build(tmp_path / "i", [SparseRows(rows.ids, rows.offsets, rows.terms, rows.weights, "x", origin)])
    words = ["search", "--index", str(tmp_path / "i"), "dog^1"]
    assert main(words) == 0 and "dog" in capsys.readouterr().out
    path = tmp_path / "m" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["dog"], vocabulary["cat"] = vocabulary["cat"], vocabulary["dog"]
    path.unlink()
    path.write_text(json.dumps(content), encoding="utf-8")
    assert main(words) == 2 and "its vectors were made by m" in capsys.readouterr().err


def _of_model(name):
    rows = SparseRows.from_bags([{3899: 1.0}], ["a.jpg"])
    origin = Origin(ModelStamp(name, "", "0" * 32), None)
    return SparseRows(rows.ids, rows.offsets, rows.terms, rows.weights, "x", origin)


def test_ids_are_no_commands_to_the_terminal(tmp_path, capsys):
    build(tmp_path / "i", [SparseRows.from_bags([{1: 1.0}], ["a\x1b[2J\nb.jpg"])])
    assert main(["search", "--index", str(tmp_path / "i"), "--bag", '{"1": 1.0}', "--thumbnails", "never"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.count("\n") == 1 and "b.jpg" in out


def test_terminals_that_show_images():
    from lexlip.search.terminal import image_protocol, iterm2, kitty, sixel

    image = Image.new("RGB", (70, 13), (200, 30, 30))
    assert image_protocol({"TERM": "xterm-256color"}) is None
    assert image_protocol({"TERM": "xterm-kitty", "TMUX": "1"}) is None
    for environment in ({"TERM": "xterm-kitty"}, {"TERM_PROGRAM": "iTerm.app"}, {"TERM": "foot"}):
        assert image_protocol(environment) is not None
    assert kitty(image).startswith("\033_Ga=T,f=100,m=0;") and kitty(image).endswith("\033\\")
    assert iterm2(image).startswith("\033]1337;File=inline=1;width=70px")
    code = sixel(image)
    assert code.startswith("\033Pq#0;2;78;11;11") and code.count("-") == 3 and code.endswith("\033\\")


def test_it_syncs_a_folder_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 200 - 60 * number, 30)).save(tmp_path / "photos" / f"{number}.png")
    words = ["search", "--photos", str(tmp_path / "photos"), "green grass and a dog", "--json"]
    assert main(words) == 0
    output = capsys.readouterr()
    first = json.loads(output.out)
    assert {hit["id"] for hit in first} <= {"0.png", "1.png", "2.png"} and "3 added" in output.err
    (place,) = (tmp_path / "data" / "lexlip" / "indexes").iterdir()
    assert place.name.startswith("photos-") and len(Index.open(place)) == 3
    lock = FileLock(place / "sync.lock")
    with lock:  # another sync is at work
        assert main(words) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == first and "searching it as it is" in output.err
    (tmp_path / "photos" / "2.png").unlink()
    assert main(words) == 0
    assert {hit["id"] for hit in json.loads(capsys.readouterr().out)} <= {"0.png", "1.png"}
