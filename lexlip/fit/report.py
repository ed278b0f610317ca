"""The report of a fit: recall beside the dense reference, and photos with their words."""

from __future__ import annotations

import argparse
import base64
import html
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F

from lexlip.features.data import read_data
from lexlip.features.store import FeatureSplit, FeatureStore
from lexlip.models.frozen.model import FrozenLexLIP
from lexlip.utils.files import write_json, write_whole
from lexlip_data.sources.images import open_image
from lexlip_data.sources.skipped import Rules

PHOTOS = 12
WORDS = 10
SIDE = 200  # pixels of a photo on the page
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}.photos{display:grid;gap:1rem;
grid-template-columns:repeat(auto-fill,minmax(220px,1fr))}figure{margin:0;border:1px solid #ddd;border-radius:6px;
padding:.6rem;font-size:13px}img{width:100%;border-radius:4px}
span{display:inline-block;background:#eef3f8;border-radius:4px;padding:0 .35em;margin:.1em .15em .1em 0}
@media(prefers-color-scheme:dark){body{background:#16181c;color:#ddd}td,th,figure{border-color:#444}
span{background:#2a3340}}
"""


class Said(NamedTuple):
    """A photo, one of its captions, and the words that a model gives the photo."""

    id: str
    caption: str
    words: list[tuple[str, float]]


def write_report(
    model: FrozenLexLIP, metrics: dict, features: Path, options: argparse.Namespace, work: Path
) -> tuple[Path, list[Said]]:  # fmt: skip
    """Write metrics.json into the model folder, and report.html elsewhere; gives its path and the photos in it."""
    if metrics:
        write_json(metrics, options.out / "metrics.json")
    store = FeatureStore(features, verify=False)
    name = "val" if "val" in store.splits else "train"
    photos = said_of(model, store.split(name))
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(options.out.name)}</title><style>{STYLE}</style><h1>{html.escape(options.out.name)}</h1>"
        f"{_table(metrics)}{_photos(photos, _files(options, name, [photo.id for photo in photos]))}</html>"
    )
    path = work / "report.html"
    write_whole(path, lambda file: file.write(page.encode()))
    return path, photos


def said_of(model: FrozenLexLIP, split: FeatureSplit) -> list[Said]:
    """A dozen photos from all over a split, with the words that the model gives them."""
    rows = np.unique(np.linspace(0, len(split.image_ids) - 1, PHOTOS).astype(np.int64))
    vectors = F.normalize(model.vectors_of_features("image", {"image": split.images(rows)}, "lexicon").detach(), dim=-1)
    captions = {int(image): caption for image, caption in zip(split.caption_image, split.captions)}
    return [
        Said(split.image_ids[row], captions.get(row, ""), words)
        for row, words in zip(rows.tolist(), model.lexicon(vectors, WORDS), strict=True)
    ]


def _table(metrics: dict) -> str:
    if not metrics:
        return "<p>No photos were held out, so nothing was measured.</p>"
    lexicon = metrics["lexicon"]
    rows = {"dense reference": metrics["dense"], "lexicon": lexicon}
    rows |= {f"lexicon, {k} terms": row for k, row in lexicon["pruned"].items()}
    columns = [(side, f"R@{k}") for side in ("t2i", "i2t") for k in (1, 5, 10)]
    names = {"t2i": "text to image", "i2t": "image to text"}
    head = "".join(f"<th>{names[side]} {name}</th>" for side, name in columns)
    lines = [f"<tr><th></th>{head}<th>sum</th><th>terms, text</th><th>terms, image</th></tr>"]
    for title, row in rows.items():
        cells = "".join(f"<td>{row[side][name]:.1f}</td>" for side, name in columns)
        terms = "".join(f"<td>{row['active_terms'][side]:.0f}</td>" for side in ("text", "image"))
        lines.append(f"<tr><td>{title}</td>{cells}<td>{row['rsum']:.1f}</td>{terms if 'lex' in title else '<td><td>'}")
    words = lexicon["grounding"]
    return (
        f"<p>Recall in percent on {lexicon['pictures']} held-out photos: how often a right photo or caption is the "
        f"first, or among the first five or ten. The dense reference is what the same features give without words; "
        f"fewer terms make a smaller and faster index.</p>"
        f"<table>{''.join(lines)}</table><p>{words['images']:.0f}% of the photos have a word of their captions among "
        f"their ten heaviest terms; of the captions of another photo, {words['chance_images']:.0f}%.</p>"
    )


def _photos(photos: list[Said], files: dict[str, str]) -> str:
    figures = []
    for photo in photos:
        spans = "".join(f"<span>{html.escape(word)} {weight:.2f}</span>" for word, weight in photo.words)
        image = f"<img alt='' src='data:image/jpeg;base64,{files[photo.id]}'>" if photo.id in files else ""
        figures.append(f"<figure>{image}<p>{html.escape(photo.caption)}</p>{spans}</figure>")
    return (
        "<h2>Photos with their ten heaviest terms</h2><p>Below each photo one of its captions, then what the model "
        f"says; the first words are the surest.</p><div class=photos>{''.join(figures)}</div>"
    )


def _files(options: argparse.Namespace, split: str, wanted: list[str]) -> dict[str, str]:
    """The photos with these ids as base64 of small JPEG files."""
    data = read_data(
        options.data, options.val, options.test, held_out=options.held_out, seed=options.seed,
        data_root=options.data_root, images=options.images, rules=Rules(options.max_bad_share, options.picture_roots),
    )  # fmt: skip
    pairs = data[split]
    found: dict[str, str] = {}
    for photo in range(len(pairs)):
        if len(found) == len(wanted):
            break
        if pairs.image_name(photo) in wanted:
            image = open_image(pairs.image(photo)[1], SIDE)
            image.thumbnail((2 * SIDE, 2 * SIDE))
            file = io.BytesIO()
            image.convert("RGB").save(file, "JPEG", quality=85)
            found[pairs.image_name(photo)] = base64.b64encode(file.getvalue()).decode()
    return found
