"""The errors a user can act on.

A message says what is wrong, where, and what to do about it. ``failure.py`` renders it and turns ``code`` into the
exit status; everything else that escapes is a bug and exits with 1.
"""

from __future__ import annotations


class CxrltError(Exception):
    """An error whose cure is known.

    Args:
        what: one sentence that says what is wrong, with the offending value.
        where: the file, row, column or option concerned; empty when ``what`` already says it.
        cure: what the user can do about it.
    """

    code = 1

    def __init__(self, what: str, *, where: str = "", cure: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.cure = cure

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n{self.cure}" if self.cure else head


class UsageError(CxrltError):
    """A command line or a recipe that cannot be run as written."""

    code = 2


class DataError(CxrltError):
    """A label table, an image or a prepared dataset that cannot be used."""

    code = 3


class PluginError(CxrltError):
    """A plugin that is missing, ambiguous, broken, or was given options it does not take."""

    code = 4


class RunError(CxrltError):
    """A run directory that is damaged, foreign, or cannot be continued."""

    code = 5


class TrainingError(CxrltError):
    """Training that cannot go on: a non-finite loss, memory exhausted, a process lost."""

    code = 6


class Interrupted(CxrltError):
    """Ctrl-C (SIGINT) ended the work after it was saved; it can be continued."""

    code = 130


class Terminated(Interrupted):
    """SIGTERM ended the work after it was saved; it can be continued."""

    code = 143
