"""Errors that a user can fix."""

from __future__ import annotations


class InputError(Exception):
    """Something that the user gave cannot be used: a file, a folder, a setting.

    The message is one line that names the thing, says what was expected and what came instead, and what to
    do. The command line prints it without a traceback and exits with status 2.
    """


class TrainingFailedError(InputError):
    """A training gave up: its starts stayed stuck, or it diverged, again and again."""
