"""An index that follows folders of photos: what is new is encoded and added, what is gone is deleted.

from lexlip.sync.run import sync
sync("photos", "photos.index")
"""
