"""Warnings that reach the user of a run from whichever of its processes they come.

Python's go to standard error, which for a worker or learner is a file that nobody reads. `warn` keeps the text as well;
reports carry what their process was `warned` of to the driver, which says each text once (`driver/hearing.py`).
"""

from __future__ import annotations

import warnings

_MOST = 100  # texts that are kept
_texts: dict[str, None] = {}


def warn(text: str, stacklevel: int = 1) -> None:
    """As `warnings.warn`, for something that is done otherwise than was asked for, or left out."""
    if len(_texts) < _MOST:
        _texts.setdefault(text)
    warnings.warn(text, stacklevel=stacklevel + 1)


def warned() -> tuple[str, ...]:
    """All texts so far in this process, each once."""
    return tuple(_texts)
