"""Frozen public towers by reference, image and text, each with the same few methods. docs/FROZEN.md lists them."""

from lexlip.models.towers.image import ImageTower, load_image_tower
from lexlip.models.towers.reference import check_reference
from lexlip.models.towers.text import TextFeatures, TextTower, load_text_tower

__all__ = ["ImageTower", "TextFeatures", "TextTower", "check_reference", "load_image_tower", "load_text_tower"]
