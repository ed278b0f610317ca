"""The screenshots of docs/SERVING.md: the page of a service that runs, in light and in dark.

lexlip sync PHOTOS --index photos.index
lexlip serve --index photos.index &
python scripts/make_page_screenshots.py http://127.0.0.1:8000 "a man with a camera, a motorcycle and a cat" \\
  --word motorcycle --out docs/figures

PHOTOS holds the photos of scikit-image, CC0 and public domain: skimage.data.camera(), chelsea(), coffee(), grass(),
rocket(), astronaut(), stereo_motorcycle()[0].

Needs the extra `browser`, and a Chromium: Debian's package `chromium`, or the one that LEXLIP_CHROMIUM names.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the service")
    parser.add_argument("query")
    parser.add_argument("--word", required=True, help="that is pointed at, on the first photo that shows it")
    parser.add_argument("--forbid", help="a word that is forbidden before")
    parser.add_argument("--out", type=Path, required=True, help="folder for page_light.jpg and page_dark.jpg")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("LEXLIP_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=FLAGS.split())
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": 1180, "height": 760}, color_scheme=scheme)
            page = context.new_page()
            page.goto(options.address)
            for _ in range(3):  # the first search of a service takes longer
                page.fill("#text", options.query)
                page.keyboard.press("Enter")
                page.wait_for_selector(".tile img.there")
                page.wait_for_timeout(1000)
            if options.forbid:
                page.locator(f".chip[data-word={options.forbid}]").first.click()
                page.click("#menu .never")
                page.wait_for_selector("#query .term.never")
            page.wait_for_timeout(3000)
            word = page.locator(f".tile .chip[data-word={options.word}]").first
            tile = page.locator(f".tile:has(.chip[data-word={options.word}])").first
            if scheme == "dark":  # one shows the grid, the other a photo
                tile.locator(".photo").click()
                word = page.locator(f"dialog .words button[data-word={options.word}]")
                page.wait_for_timeout(1000)
            word.hover()
            page.wait_for_selector(".heat.on")
            page.wait_for_timeout(500)
            page.screenshot(path=options.out / f"page_{scheme}.jpg", quality=80)
        browser.close()


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root), str(root / "datasets")]
    from lexlip.errors import UserError
    from lexlip_data.command import run_command

    sys.exit(run_command(main, (UserError,)))
