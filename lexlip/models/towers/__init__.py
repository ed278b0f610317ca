"""Frozen public towers by reference, image and text, each behind one small protocol. docs/FROZEN.md lists them."""

from lexlip.models.towers.image import load_image_tower
from lexlip.models.towers.protocol import ImageTower, TextFeatures, TextTower
from lexlip.models.towers.reference import check_reference
from lexlip.models.towers.text import load_text_tower

__all__ = ["ImageTower", "TextFeatures", "TextTower", "check_reference", "load_image_tower", "load_text_tower"]
