"""The four sets of the benchmark as they lie on disk: pairs of an image's path and its long text.

A reader looks at the annotations and checks that the images are there; it opens none of them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lexlip.errors import BenchmarkError
from lexlip_data.loading.sentences import split_sentences
from lexlip_data.sources.files import is_hidden

IIW_PARTS = {"DOCCI_Test": "docci", "IIW-400": "docci_aar", "DCI_Test": "dci"}  # annotations -> images


@dataclass
class PairSet:
    """One set: image i and text i belong together, and nothing else does."""

    name: str  # as the table prints it
    images: list[Path] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # sentences joined by ". "
    missing: list[str] = field(default_factory=list)  # one line per image or entry that should be there and is not

    def add(self, image: Path, text: object, entry: str) -> None:
        """Take a pair, or note what it lacks; `entry` says where the text stands."""
        joined = ". ".join(split_sentences(text)) if isinstance(text, str) else ""
        if not joined:
            self.missing.append(f"{entry}: no text")
        elif not image.is_file():
            self.missing.append(f"{image}: no such image ({entry})")
        else:
            self.images.append(image)
            self.texts.append(joined)


def read_dci(root: Path) -> PairSet:
    """Densely Captioned Images, all splits: short caption and extra caption.

    `root` holds `densely_captioned_images/{splits.json, annotations/*.json, photos/}`.

    Raises:
        BenchmarkError: no splits.json, or a file that is no such JSON.
    """
    pairs, root = PairSet("DCI"), root / "densely_captioned_images"
    splits = _json(root / "splits.json")
    if not isinstance(splits, dict) or not all(isinstance(files, list) for files in splits.values()):
        raise BenchmarkError(f"{root / 'splits.json'} must map each split to a list of annotation files")
    for name in (name for files in splits.values() for name in files):
        file = root / "annotations" / str(name)
        if not file.is_file():
            pairs.missing.append(f"{file}: no such annotation (splits.json)")
            continue
        entry = _json(file)
        image, short, extra = (_field(entry, key, file) for key in ("image", "short_caption", "extra_caption"))
        pairs.add(root / "photos" / str(image), f"{short}\n{extra}", str(file))
    return pairs


def read_iiw(root: Path, annotations: Path | None = None) -> PairSet:
    """ImageInWords: DOCCI_Test, IIW-400 and DCI_Test.

    Args:
        root: holds the images in `docci`, `docci_aar` and `dci`.
        annotations: holds `{DOCCI_Test, IIW-400, DCI_Test}/data.jsonl`; None: `root` does.

    Raises:
        BenchmarkError: no data.jsonl, or a line that is no JSON object with an image and a text.
    """
    pairs = PairSet("IIW")
    for part, folder in IIW_PARTS.items():
        file = (annotations or root) / part / "data.jsonl"
        for where, entry in _json_lines(file):
            key = "image" if "image" in entry else "image/key"
            image = str(_field(entry, key, where))
            image += "" if ".jpg" in image else ".jpg"
            pairs.add(root / folder / image, _field(entry, "IIW", where), where)
    return pairs


def read_share4v(root: Path, annotations: Path, count: int) -> PairSet:
    """The first entries of ShareGPT4V's captions of SA-1B images.

    Args:
        root: that the entries' image paths start from.
        annotations: `share4v_sam_10k.json`, a list of {"image", "conversations"}.
        count: entries to take; fewer in the file are noted as missing.

    Raises:
        BenchmarkError: no such file, or an entry of another form.
    """
    short = f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else f"{count}"
    pairs, entries = PairSet(f"SV-{short}"), _json(annotations)
    if not isinstance(entries, list):
        raise BenchmarkError(f"{annotations} must hold a list of entries")
    for number, entry in enumerate(entries[:count]):
        where = f"{annotations}, entry {number}"
        turns = _field(entry, "conversations", where)
        if not isinstance(turns, list) or len(turns) < 2 or not isinstance(turns[1], dict):
            raise BenchmarkError(f"{where}: conversations must be a question and an answer")
        pairs.add(root / str(_field(entry, "image", where)), turns[1].get("value"), where)
    if len(entries) < count:
        pairs.missing.append(f"{annotations}: entries {len(entries)} to {count - 1}, the file holds {len(entries)}")
    return pairs


def read_urban1k(root: Path) -> PairSet:
    """Urban1k: the first line of each text; `root` holds `image/*.jpg` and `caption/*.txt` of the same names.

    Raises:
        BenchmarkError: no such folders, or a text that is no UTF-8.
    """
    pairs = PairSet("Urban1k")
    for folder in ("image", "caption"):
        if not (root / folder).is_dir():
            raise BenchmarkError(f"{root / folder}: no such folder; Urban1k has image/*.jpg and caption/*.txt")
    for file in _visible(root / "caption", "*.txt"):
        pairs.add(root / "image" / f"{file.stem}.jpg", _text(file).split("\n")[0], str(file))
    captions = ((image, root / "caption" / f"{image.stem}.txt") for image in _visible(root / "image", "*.jpg"))
    pairs.missing += [f"{image}: no {caption}" for image, caption in captions if not caption.exists()]
    return pairs


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Files in the order of their names, without what macOS and others put beside them."""
    return sorted(file for file in folder.glob(pattern) if not is_hidden(file.name))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchmarkError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{file} is no UTF-8 text: {error.reason} at byte {error.start}") from error


def _json(file: Path) -> object:
    return _parsed(_text(file), str(file))


def _json_lines(file: Path) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_text(file).split("\n"), 1):
        if line.strip():
            where = f"{file}, line {number}"
            entry = _parsed(line, where)
            if not isinstance(entry, dict):
                raise BenchmarkError(f"{where} must hold an object")
            yield where, entry


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{where} is no JSON: {error}") from error


def _field(entry: object, key: str, where: str | Path) -> object:
    if not isinstance(entry, dict) or key not in entry:
        raise BenchmarkError(f"{where} has no field {key!r}")
    return entry[key]
