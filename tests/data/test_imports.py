"""What importing the data layer loads, and that its former places remain; tests/test_rooms.py has the arrows."""

from pathlib import Path

import lexlip_data

ROOT = Path(lexlip_data.__file__).parent


def test_sources_and_converter_load_no_torch(python):
    modules = [
        f"lexlip_data.{room}.{path.stem}" for room in ("sources", "convert") for path in (ROOT / room).glob("*.py")
    ]
    done = python(
        f"import sys, {', '.join(modules)}; print(sorted({{'torch', 'lexlip'}} & set(sys.modules)))", text=True
    )
    assert done.stdout == "[]\n", done.stderr


def test_former_places_still_lead_to_what_was_there():
    from lexlip_data.arrow import ArrowSource
    from lexlip_data.pictures import open_image
    from lexlip_data.registry import open_split
    from lexlip_data.transforms import build_transform

    modules = ["sources.arrow", "sources.images", "sources.registry", "loading.transforms"]
    assert [item.__module__ for item in (ArrowSource, open_image, open_split, build_transform)] == [
        f"lexlip_data.{module}" for module in modules
    ]
