"""The figure of docs/MODELS.md: where photos-small sees some words on photos, a line of heat maps for each.

python scripts/make_heat_figure.py --out docs/figures/heat_maps.jpg \\
  motorcycle_left.png:motorcycle,bike,wheeler

with a photo of scikit-image (Daniel Scharstein, CC0): skimage.data.stereo_motorcycle()[0].
`lexlip explain --image photo.png --words dog,beach --out heat.png` makes one line.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

from lexlip import LexLIP
from lexlip.explain.heat import figure
from lexlip_data.sources.images import open_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="+", metavar="IMAGE:WORD,WORD")
    parser.add_argument("--model", default="photos-small")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = LexLIP.from_pretrained(options.model)
    lines = []
    for line in options.lines:
        path, _, words = line.rpartition(":")
        image, names = open_image(Path(path).read_bytes()), words.split(",")
        own = dict(model.lexicon(model.encode_image(image, normalize=False), model.vocab_size)[0])
        labels = [f"{name}  {own.get(name, 0):.2f}" for name in names]
        lines.append(figure(image, labels, model.attribute(image, names).numpy(), model.seen(image.size)))
    out = Image.new("RGB", (max(line.width for line in lines), sum(line.height for line in lines)), "white")
    top = 0
    for line in lines:
        out.paste(line, (0, top))
        top += line.height
    out.save(options.out, quality=88)


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root), str(root / "datasets")]
    from lexlip.errors import UserError
    from lexlip_data.command import run_command

    sys.exit(run_command(main, (UserError,)))
