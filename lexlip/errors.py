"""Every error that a user can see; the ways in which data can be wrong are in `lexlip_data.errors`. Needs no torch."""

# --- mistakes that a user can correct: the `lexlip` command tells them in one line ---


class UserError(ValueError):
    """Something given is wrong; the message names it and says what would do."""


class ConfigError(UserError):
    """A config key, a value or a combination that cannot work; the message says what would."""


class CheckpointError(UserError):
    """A file or folder that cannot be used as weights; the message names it and says why."""


class BenchmarkError(UserError):
    """Annotations of a benchmark that cannot be read, or images and entries that are missing."""


class EncodingError(UserError):
    """A corpus, an output folder, an argument, a text or an image that cannot be encoded."""


class FeaturesError(UserError):
    """Features that cannot be written, or a folder of them that is incomplete, damaged or of something else."""


class IndexingError(UserError):
    """Vectors, ids, queries or settings that an index cannot take, or a folder that holds no index."""


class DamagedIndex(IndexingError):
    """Bytes on disk that are not what was written."""


class IndexBusy(IndexingError):
    """Another process is writing to the index."""


class EngineError(UserError):
    """An engine elsewhere that does not answer, refuses, or has no space; the message says which and what to do."""


# --- what ends a run: not by what was given, or not by that alone ---


class LaunchError(RuntimeError):
    """A launch that cannot start or cannot go on; the message says why and what would help."""


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says why and what to do."""


class LostContact(RuntimeError):
    """Another process of the run ended or cannot be reached; the message says what was seen and what to do."""


class LoaderDied(RuntimeError):
    """A loader process was killed; the message says by what, most likely. Starting again may well succeed."""
