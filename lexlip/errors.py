"""Mistakes that a user can put right: the `lexlip` command tells them in one line. Needs no torch."""

from __future__ import annotations


class UserError(ValueError):
    """Something given is wrong; the message names it and says what would do."""


class ConfigError(UserError):
    """A key, a value or a combination that cannot work; the message says what would."""


class CheckpointError(UserError):
    """A file that cannot be used as weights; the message names it and says why."""
