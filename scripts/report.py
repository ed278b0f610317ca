"""The quickstart's report: metrics.json, a table, and report.html with curves and search results.

python scripts/report.py RUNS DATA_ROOT                writes RUNS/metrics.json and RUNS/report.html
python scripts/report.py RUNS DATA_ROOT --photos DIR   also shows what photos-small says of photos of your own
python scripts/report.py --table RUNS                  prints the table of RUNS/metrics.json
"""

from __future__ import annotations

import argparse
import base64
import csv
import html
import io
import json
import re
import sys
from pathlib import Path

STAGES = {"untrained": "untrained", "phase1": "Phase 1", "phase2": "Phase 2"}
QUERIES = 12
RESULTS = 5  # of each query
WORDS = 6
HEAVIEST = 5  # terms of a drawing or a name that are compared with the words of the name
DRAWINGS = 12  # that photos-small describes
MOST_PHOTOS = 60  # of the user's folder
SIDE = 192  # pixels of a photo on the page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("data_root", type=Path, nargs="?")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="a folder of photos to describe")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print_table(read_json(arguments.runs / "metrics.json"))
        return
    if arguments.data_root is None:
        parser.error("the data's folder is needed for the report")
    from lexlip import LexLIP
    from lexlip.utils.files import write_whole

    model = LexLIP.from_pretrained(arguments.runs / "model")
    metrics = collect(arguments.runs, named(model, arguments.data_root))
    examples = search(model, arguments.data_root)
    shown = described(arguments.data_root, arguments.photos)
    page = render(metrics, curves(arguments.runs), examples, shown)
    write_whole(arguments.runs / "report.html", lambda file: file.write(page.encode()))


def collect(runs: Path, names: dict | None = None) -> dict:
    """metrics.json: what each stage's evaluation wrote, chance, and what `named` found."""
    from lexlip.utils.files import write_json

    stages = {}
    for stage in STAGES:
        stages[stage] = next(iter(read_json(runs / f"{stage}.json").values()))
    by_side = stages["phase2"]["chance"]
    metrics = {"chance": {**by_side["t2i"], **by_side}, **stages, **({"names": names} if names else {})}
    write_json(metrics, runs / "metrics.json")
    return metrics


def read_json(file: Path) -> dict:
    """What an evaluation wrote.

    Raises:
        DataError: it is not what an evaluation writes.
    """
    from lexlip_data.errors import DataError, one_line

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is damaged ({one_line(error)}); evaluate again") from error
    if not isinstance(content, dict) or not content:
        raise DataError(f"{file} holds no metrics; evaluate again")
    return content


def print_table(metrics: dict) -> None:
    """The stages' recall beside chance."""
    from lexlip.evaluate.recall import table, words

    stages = {title: metrics[stage] for stage, title in STAGES.items()}
    print(table(stages))
    chance = "".join(f"{metrics['chance'][f'R@{k}']:8.2f}" for k in (1, 5, 10))
    print(f"{'chance':24}{chance}{chance}")
    print(words(stages))
    if names := metrics.get("names"):
        print(
            f"of {names['count']} test drawings whose name's words all occur in training, {names['images']:.1f}% have "
            f"one of them among their {HEAVIEST} heaviest, and {names['texts']:.1f}% of the names themselves"
        )


def named(model, data_root: Path) -> dict[str, float]:
    """Of the test drawings whose name's words all occur in training names: whether the heaviest terms hold one of them.

    Returns:
        "images" and "texts", in percent of "count" drawings; function words do not count.
    """
    from lexlip.models.terms import FUNCTION_WORDS
    from lexlip_data.sources.images import open_image
    from lexlip_data.sources.registry import open_split

    train, test = (open_split(data_root, "openmoji", split)[0] for split in ("train", "test"))
    split_words = lambda source, row: set(re.findall(r"[a-z0-9]+", source.captions(row)[0].lower()))
    known = set().union(*(split_words(train, row) for row in range(len(train))))
    rows = [row for row in range(len(test)) if split_words(test, row) <= known]
    found = {"images": 0, "texts": 0}
    for first in range(0, len(rows), 100):
        some = rows[first : first + 100]
        vectors = {
            "images": model.encode_image([open_image(bytes(test.image_bytes(row))) for row in some]),
            "texts": model.encode_text([test.captions(row)[0] for row in some]),
        }
        for side, lexicons in ((side, model.lexicon(v, HEAVIEST)) for side, v in vectors.items()):
            wanted = [split_words(test, row) - FUNCTION_WORDS for row in some]
            found[side] += sum(bool(w & {term for term, _ in top}) for w, top in zip(wanted, lexicons, strict=True))
    return {"count": len(rows), **{side: 100 * hits / max(1, len(rows)) for side, hits in found.items()}}


def curves(runs: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """{phase: {metric: [(step, value)]}} from the runs' CSV logs."""
    series: dict = {}
    for stage in ("phase1", "phase2"):
        with open(runs / f"{stage}_seed0" / "demo" / "metrics.csv", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name.startswith(("train/", "val/")):
                        series.setdefault(STAGES[stage], {}).setdefault(name, []).append(
                            (float(row["step"]), float(value))
                        )
    return series


def search(model, data_root: Path) -> list[dict]:
    """A dozen test captions, the best images for each, and every image's heaviest words."""
    import torch

    from lexlip_data.sources.images import open_image
    from lexlip_data.sources.registry import open_split

    source = open_split(data_root, "openmoji", "test")[0]
    files = [bytes(source.image_bytes(row)) for row in range(len(source))]
    batches = [files[start : start + 100] for start in range(0, len(files), 100)]
    images = torch.cat([model.encode_image([open_image(data) for data in batch]) for batch in batches])
    step = max(1, len(source) // QUERIES)
    examples = []
    for row in list(range(0, len(source), step))[:QUERIES]:
        caption = source.captions(row)[0]
        query = model.encode_text([caption])
        scores = (query @ images.T)[0]
        best = scores.topk(min(RESULTS, len(images)))
        results = [
            {
                "png": base64.b64encode(files[number]).decode(),
                "score": score,
                "right": number == row,
                "caption": source.captions(number)[0],
                "words": model.lexicon(images[number : number + 1], WORDS)[0],
            }
            for number, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        rank = int((scores > scores[row]).sum()) + 1
        examples.append({"query": caption, "rank": rank, "words": model.lexicon(query, WORDS)[0], "results": results})
    return examples


def described(data_root: Path, folder: Path | None) -> list[tuple[str, list[dict], str]]:
    """What photos-small says of a dozen test drawings and of a folder's photos: (title, figures, note) of each."""
    from lexlip import LexLIP
    from lexlip.encode.files import FolderImages
    from lexlip_data.sources.registry import open_split

    model = LexLIP.from_pretrained("photos-small")
    source = open_split(data_root, "openmoji", "test")[0]
    rows = range(0, len(source), max(1, len(source) // DRAWINGS))[:DRAWINGS]
    drawings = [(source.captions(row)[0], bytes(source.image_bytes(row))) for row in rows]
    sections = [("Drawings", *_said(model, drawings))]
    if folder is not None:
        photos = FolderImages(folder)
        count = min(len(photos), MOST_PHOTOS)
        figures, note = _said(model, [photos.image(row) for row in range(count)])
        if count < len(photos):
            note = f"The first {count} of {len(photos):,} photos. {note}"
        sections.append((f"Photos in {folder}", figures, note if len(photos) else "There is no image in this folder."))
    return sections


def _said(model, images: list[tuple[str, bytes]]) -> tuple[list[dict], str]:
    """Each image with its name and its heaviest words; and which could not be read."""
    from lexlip_data.errors import BrokenImage
    from lexlip_data.sources.images import open_image

    figures, broken = [], []
    for name, data in images:
        try:
            image = open_image(data)
        except BrokenImage as error:
            broken.append(f"{name} ({error})")
            continue
        said = model.lexicon(model.encode_image([image]), WORDS)[0]
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.convert("RGBA").save(file, "PNG")
        figures.append({"png": base64.b64encode(file.getvalue()).decode(), "caption": name, "words": said})
    return figures, f"Left out: {'; '.join(broken)}" if broken else ""


# --- the page ---

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}.row{display:flex;gap:.8rem;flex-wrap:wrap;margin:.4rem 0 1.6rem}
figure{margin:0;width:170px;font-size:12px;border:1px solid #ddd;border-radius:6px;padding:.5rem}
figure.right{border:2px solid #2a8}figure img{max-width:96px;max-height:96px;display:block;margin:auto}
figure.photo img{max-width:100%;max-height:170px}
.words span{display:inline-block;background:#eef3f8;border-radius:4px;padding:0 .35em;margin:.1em .15em .1em 0}
.charts{display:flex;gap:1rem;flex-wrap:wrap}svg text{font:11px system-ui,sans-serif;fill:#555}
"""
COLOURS = ("#3366cc", "#dc7a1e", "#2a9d6f", "#a33ea1", "#c33")
DASHES = ("none", "7 3", "2 3", "9 3 2 3")  # so that lines differ without colours too
HOW_TO_READ = (
    "R@10 of 70 under “text to image” means: for 70 of 100 captions, the caption's own image is among the ten best. "
    "A row that is no better than chance has learnt nothing; more terms cost a larger and slower index, so good rows "
    "are high on the left and low on the right."
)


def render(
    metrics: dict, series: dict, examples: list[dict], shown: list[tuple[str, list[dict], str]] | None = None
) -> str:
    """The whole page in one file.

    Args:
        shown: as `described` gives it; None: nothing of it.
    """
    charts = []
    for phase, values in series.items():
        losses = {name[6:]: points for name, points in values.items() if "loss" in name and name.startswith("train/")}
        recalls = {name.split("/")[-1]: points for name, points in values.items() if "_R@" in name}
        charts += [chart(f"{phase}: training loss", losses), chart(f"{phase}: val recall, %", recalls)]
    sections = []
    for example in examples:
        figures = "".join(figure(result) for result in example["results"])
        sections.append(
            f"<h3>{html.escape(example['query'])}</h3><p>right image at rank {example['rank']}; the query's words: "
            f"{words(example['words'])}</p><div class=row>{figures}</div>"
        )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>LexLIP quickstart</title><style>{STYLE}</style>"
        f"<h1>LexLIP on OpenMoji</h1><p>{metrics['phase2']['pictures']} test images that were not trained on. "
        f"Recall in percent.</p>{metrics_table(metrics)}<p>{HOW_TO_READ}</p><div class=charts>{''.join(charts)}</div>"
        f"<p>Losses should fall and recalls rise; where they are flat, more steps bring little.</p>"
        f"<h2>What Phase 2 finds</h2><p>Test captions as queries; the caption's own image is green; below each image "
        f"its heaviest words.</p>{''.join(sections)}{_described(shown or [])}"
        "<p>Drawings: OpenMoji, CC BY-SA 4.0, openmoji.org.</p></html>"
    )


def _described(shown: list[tuple[str, list[dict], str]]) -> str:
    """What photos-small says, each part with its images."""
    if not shown:
        return ""
    parts = [
        "<h2>What photos-small says</h2><p>The model that comes with the package: small heads on public towers, "
        "trained on photos of people, dogs, sport and streets (docs/FROZEN.md). It knows no drawings, so read those "
        "words as what they resemble; the first words are the surest.</p>"
    ]
    for title, figures, note in shown:
        images = "".join(
            f"<figure class=photo><img alt='' src='data:image/png;base64,{image['png']}'>"
            f"{html.escape(image['caption'])}<br>{words(image['words'])}</figure>"
            for image in figures
        )
        told = f"<p>{html.escape(note)}</p>" if note else ""
        parts.append(f"<h3>{html.escape(title)}</h3>{told}<div class=row>{images}</div>")
    return "".join(parts)


def metrics_table(metrics: dict) -> str:
    """Stages, pruned vectors and chance as an HTML table."""
    rows = [(title, metrics[stage]) for stage, title in STAGES.items()]
    rows += [(f"Phase 2, {k} terms", row) for k, row in metrics["phase2"].get("pruned", {}).items()]
    names = ("R@1", "R@5", "R@10")
    head = "".join(f"<th>{side} {name}</th>" for side in ("text to image", "image to text") for name in names)
    lines = [f"<tr><th></th>{head}<th>terms, text</th><th>terms, image</th></tr>"]
    for title, row in rows:
        cells = "".join(f"<td>{row[side][name]:.1f}</td>" for side in ("t2i", "i2t") for name in names)
        terms = "".join(f"<td>{row['active_terms'][side]:.0f}</td>" for side in ("text", "image"))
        lines.append(f"<tr><td>{title}</td>{cells}{terms}</tr>")
    chance = "".join(f"<td>{metrics['chance'][name]:.2f}</td>" for name in names) * 2
    lines.append(f"<tr><td>chance</td>{chance}<td></td><td></td></tr>")
    return f"<table>{''.join(lines)}</table>"


def words(pairs: list[tuple[str, float]]) -> str:
    """Words with their weights."""
    spans = "".join(f"<span>{html.escape(word)} {weight:.2f}</span>" for word, weight in pairs)
    return f"<span class=words>{spans}</span>"


def figure(result: dict) -> str:
    """One result."""
    return (
        f"<figure class={'right' if result['right'] else 'other'}>"
        f"<img alt='' src='data:image/png;base64,{result['png']}'>"
        f"<b>{result['score']:.2f}</b> {html.escape(result['caption'])}<br>{words(result['words'])}</figure>"
    )


def chart(title: str, series: dict[str, list[tuple[float, float]]], width: int = 500, height: int = 260) -> str:
    """A line chart as inline SVG, `width` of it the plot; the legend stands beside it."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    left, right, top, bottom = 44, 10, 26, 24
    high = max(value for _, value in points) or 1.0
    last = max(step for step, _ in points) or 1.0

    def point(step: float, value: float) -> str:
        x = left + (width - left - right) * step / last
        y = height - bottom - (height - top - bottom) * value / high
        return f"{x:.1f},{y:.1f}"

    parts = [f"<text x={left} y=14 font-weight=bold>{html.escape(title)}</text>"]
    for fraction in (0, 0.5, 1):
        y = height - bottom - (height - top - bottom) * fraction
        parts.append(f"<path d='M{left} {y}H{width - right}' stroke=#ddd />")
        parts.append(f"<text x=4 y={y + 4}>{high * fraction:.3g}</text>")
    parts.append(f"<text x={width - right} y={height - 6} text-anchor=end>step {last:.0f}</text>")
    for number, (name, line) in enumerate(series.items()):
        look = f"fill=none stroke={COLOURS[number % len(COLOURS)]} stroke-dasharray='{DASHES[number % len(DASHES)]}'"
        parts.append(f"<polyline points='{' '.join(point(*numbers) for numbers in line)}' {look} stroke-width=1.5 />")
        y = top + 16 * number
        parts.append(f"<path d='M{width} {y}h30' {look} stroke-width=2 />")
        parts.append(f"<text x={width + 36} y={y + 4}>{html.escape(name)}</text>")
    tall = max(height, top + 16 * len(series))
    wide = width + 42 + 7 * max(map(len, series))  # about 6.5 pixels a letter
    return f"<svg width={wide} height={tall} role=img>{''.join(parts)}</svg>"


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root), str(root / "datasets")]
    from lexlip.errors import UserError
    from lexlip_data.command import run_command

    sys.exit(run_command(main, (UserError,)))
