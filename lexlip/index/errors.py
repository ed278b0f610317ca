"""What can go wrong with an index. Every message is one line that names the file, row or value."""

from __future__ import annotations

from lexlip.errors import UserError


class IndexingError(UserError):
    """Vectors, ids, queries or settings that an index cannot take, or a folder that holds none."""


class DamagedIndex(IndexingError):
    """Bytes on disk that are not what was written."""


class IndexBusy(IndexingError):
    """Another process is writing to the index."""
