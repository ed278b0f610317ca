"""Mistakes that a user can put right: the `lexlip` command tells them in one line. Needs no torch."""

from __future__ import annotations


class UserError(ValueError):
    """Something given is wrong; the message names it and says what would do."""


class ConfigError(UserError):
    """A key, a value or a combination that cannot work; the message says what would."""


class CheckpointError(UserError):
    """A file that cannot be used as weights; the message names it and says why."""


class BenchmarkError(UserError):
    """Annotations that cannot be read, or pictures and entries that are not there."""


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says why and what to do."""


class LoaderDied(RuntimeError):
    """A loader process was killed; the message says by what, most likely. Starting again may well succeed."""


class EncodingError(UserError):
    """A corpus, a folder or an argument that cannot be used; the message names it and says what would do."""


class IndexingError(UserError):
    """Vectors, ids, queries or settings that an index cannot take, or a folder that holds none."""


class DamagedIndex(IndexingError):
    """Bytes on disk that are not what was written."""


class IndexBusy(IndexingError):
    """Another process is writing to the index."""


class LostContact(RuntimeError):
    """Another process of the run ended or cannot be reached; the message says what was seen and what to do."""


class LaunchError(RuntimeError):
    """A launch that cannot start or cannot go on; the message says why and what would help."""
