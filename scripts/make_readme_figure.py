"""README's figure: an image, a caption, and the heaviest terms that a model gives each of them.

python scripts/make_readme_figure.py runs/quickstart/model --arrow data/openmoji/openmoji_test.arrow \\
  --caption "man mechanic" --credit "Drawing: OpenMoji, CC BY-SA 4.0" --out docs/figures/readme.svg
python scripts/make_readme_figure.py MODEL --image photo.jpg --caption "a dog catches a ball" --out figure.svg

Terms that both have are strong, the others pale; the score is the dot product over all shared terms.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 860, 316
TERMS, TOP, STEP = 8, 56, 26  # bars of each side, y of the first, distance
LONGEST = 120  # of a bar
STYLE = """
.card{fill:#fdfdfc;stroke:#c9c9c4}.ink{fill:#1f2328}.soft{fill:#57606a;font-size:12px}
.head{fill:#1f2328;font-weight:600}.image{fill:#4a7fb0}.text{fill:#b9763a}.single{opacity:.35}
@media (prefers-color-scheme: dark){
.card{fill:#15191e;stroke:#3d444d}.ink,.head{fill:#e6edf3}.soft{fill:#aab4bf}.image{fill:#6ba3d6}.text{fill:#dd9a5c}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder, or a name on the Hugging Face hub")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=Path, help="an image file")
    source.add_argument("--arrow", type=Path, help="an Arrow file of a data set: the image with this caption")
    parser.add_argument("--caption", required=True)
    parser.add_argument("--credit", default="", help="whose image it is")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    from lexlip.utils.files import write_whole

    image = options.image.read_bytes() if options.image else image_with_caption(options.arrow, options.caption)
    drawing = figure(options.model, image, options.caption, options.credit)
    write_whole(options.out, lambda file: file.write(drawing.encode()))


def image_with_caption(path: Path, caption: str) -> bytes:
    """The first image of an Arrow file that has this caption."""
    from lexlip_data.errors import DataError
    from lexlip_data.sources.arrow import ArrowSource

    source = ArrowSource("figure", "test", [path])
    for row in range(len(source)):
        if caption in source.captions(row):
            return bytes(source.image_bytes(row))
    raise DataError(f"{path} has no image with the caption {caption!r}")


def figure(name: str, image: bytes, caption: str, credit: str = "") -> str:
    """The SVG. Everything in it is the model's output; nothing is loaded from outside.

    Args:
        name: model folder, or a name on the hub.
        image: an encoded image file.
    """
    from lexlip import LexLIP
    from lexlip_data.sources.images import open_image

    model = LexLIP.from_pretrained(name)
    opened = open_image(image)
    vectors = {"image": model.encode_image(opened)[0], "text": model.encode_text(caption)[0]}
    shared = (vectors["image"] > 0) & (vectors["text"] > 0)
    names = set(model.tokenizer.convert_ids_to_tokens(shared.nonzero()[:, 0].tolist()))
    terms = {side: model.lexicon(vector[None], TERMS)[0] for side, vector in vectors.items()}
    scale = LONGEST / max(weight for side in terms.values() for _, weight in side)
    active = {side: int((vector > 0).sum()) for side, vector in vectors.items()}
    score = float(vectors["image"] @ vectors["text"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="14" '
        "font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif\">",
        f"<title>An image and the caption {escape(caption)}, with their heaviest terms</title><style>{STYLE}</style>",
        f'<rect class="card" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12"/>',
        f'<image x="24" y="56" width="140" height="140" href="data:image/png;base64,{_thumbnail(opened)}"/>',
        _text(24, 34, f"image: {active['image']} terms", "head"),
        _text(472, 34, f"caption: {active['text']} terms", "head"),
        *_wrapped(472, TOP + 13, f"“{caption}”"),
        *_bars(188, terms["image"], "image", names, scale),
        *_bars(592, terms["text"], "text", names, scale),
        _text(24, HEIGHT - 34, f"score {score:.2f}: the dot product over {len(names)} shared terms (strong)", "ink"),
        _text(24, HEIGHT - 14, credit, "soft"),
    ]
    return "\n".join(parts) + "\n</svg>\n"


def _bars(x: int, terms: list[tuple[str, float]], side: str, shared: set[str], scale: float) -> list[str]:
    """A line for each term: its name, a bar, its weight."""
    parts = []
    for row, (term, weight) in enumerate(terms):
        y, pale = TOP + STEP * row, "" if term in shared else " single"
        parts.append(_text(x + 82, y + 13, term, "ink" + pale, "end"))
        parts.append(f'<rect class="{side}{pale}" x="{x + 90}" y="{y + 2}" width="{weight * scale:.1f}" height="13"/>')
        parts.append(_text(x + 96 + weight * scale, y + 13, f"{weight:.2f}", "soft"))
    return parts


def _wrapped(x: int, y: int, text: str, letters: int = 14) -> list[str]:
    """A caption in lines of about so many letters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(f"{lines[-1]} {word}") > letters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [_text(x, y + 20 * row, line, "ink") for row, line in enumerate(lines)]


def _text(x: float, y: int, text: str, style: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _thumbnail(image) -> str:
    small = image.copy()
    small.thumbnail((280, 280))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root), str(root / "datasets")]
    from lexlip.errors import UserError
    from lexlip_data.command import run_command

    sys.exit(run_command(main, (UserError,)))
