"""Which model an index is searched with where none is named."""

from pathlib import Path

from lexlip import pretrained
from lexlip.errors import IndexingError
from lexlip.index.places import Where, place_at


def remembered(index: Where, trust_sources: bool = False) -> str:
    """Folder or name of the model that made an index; the one that comes with the package where none is known.

    Raises:
        IndexingError: no index there, or its model is to be had from the hub alone and `trust_sources` is not given:
            the name stands in a file that may be somebody else's.
    """
    stamp = place_at(index).manifest().model
    if stamp is None or not (stamp.name or stamp.folder):
        return pretrained.DEFAULT
    if stamp.folder and Path(stamp.folder).is_dir():
        return stamp.folder
    if pretrained.find(stamp.name) is None and not trust_sources:
        where = f"{stamp.folder}, which is not there any more" if stamp.folder else stamp.name
        raise IndexingError(f"{index} was made with the model {where}; name it with --model")
    return stamp.name
