"""The command line: one short function a command, which imports its stage inside and calls it.

    fieldguide --help

Nothing heavy is imported at file level, so that help and mistakes answer at once.
"""

from fieldguide.cli import everyday, machine, results, stages
from fieldguide.cli.group import app, main

__all__ = ["app", "everyday", "machine", "main", "results", "stages"]
