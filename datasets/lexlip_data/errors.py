"""The ways in which data can be wrong."""


class DataError(ValueError):
    """A file, table or setting is unusable; the message names it and says what to do."""


class BrokenSample(DataError):
    """One picture or caption cannot be used: skipped and counted in training, fatal in evaluation."""


class BrokenImage(BrokenSample):
    """The picture cannot be read or decoded."""

    kind = "broken"  # how the converter lists it


class MissingImage(BrokenImage):
    """The picture's file is not there."""

    kind = "missing"


class OutsideImage(BrokenImage):
    """The picture's path leads out of the folders that may be read."""

    kind = "outside"


def one_line(text: object, limit: int = 300) -> str:
    """For messages: what others wrote, without line breaks and other control characters.

    Of more than `limit` characters the middle is left out, because the reason stands at the end.
    """
    text = str(text)
    text = text if len(text) <= limit else f"{text[: limit // 2]}...{text[3 - limit // 2 :]}"
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
