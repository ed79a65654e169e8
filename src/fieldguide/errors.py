"""Errors that a user can act on: each says what, where and why, and names the next command.

The command line prints them as one line (`FIELDGUIDE_DEBUG=1` shows the traceback).
"""

from __future__ import annotations


class FieldguideError(Exception):
    """Base of all expected errors.

    `message` says what is wrong and where; `hint` is the next thing to do, best a command.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}  →  {self.hint}" if self.hint else self.message


class PictureError(FieldguideError):
    """A picture cannot be read. `reason` is short and without the path, fit for a table cell."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[PictureError], tuple[str, str]]:
        return (type(self), (self.path, self.reason))  # so that it can leave a worker process


class DataError(FieldguideError):
    """A source, notes table or data set folder is not what it should be."""


class SettingsError(FieldguideError):
    """One or more settings are wrong; all faults are reported together."""


class ModelMissing(FieldguideError):
    """Weights are not on this machine."""


class LeakError(FieldguideError):
    """Test pictures overlap the pictures the guide was trained on."""


class ResumeError(FieldguideError):
    """A checkpoint cannot be continued: the data, the settings or the weights changed."""


class GuideError(FieldguideError):
    """A guide folder is missing, half written, or its parts do not belong together."""


class MergeError(FieldguideError):
    """What would be written is not what was trained; so nothing is written."""


class Stopped(FieldguideError):
    """The system asked the program to stop (SIGTERM), and it has saved its work."""

    code = 143  # 128 + the number of the signal
