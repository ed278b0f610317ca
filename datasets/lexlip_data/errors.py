"""The two ways in which data can be wrong."""


class DataError(ValueError):
    """A file, table or setting is unusable; the message names it and says what to do."""


class BrokenImage(DataError):
    """One picture is missing or cannot be decoded: skipped and counted in training, fatal in evaluation."""
