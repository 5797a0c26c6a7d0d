"""Warnings that reach the user of a run from whichever of its processes they come.

Python's go to standard error, which for a worker or learner is a file that nobody reads. `warn` keeps the text as well;
reports carry what their process was `warned` of to the driver, which says each text once (`driver/hearing.py`).
"""

from __future__ import annotations

import warnings

_MOST = 100  # texts that are kept: the older ones have been told by then
_texts: dict[str, None] = {}


def warn(text: str, stacklevel: int = 1) -> None:
    """As `warnings.warn`, for something that is done otherwise than was asked for, or left out."""
    _texts.setdefault(text)
    if len(_texts) > _MOST:
        del _texts[next(iter(_texts))]
    warnings.warn(text, stacklevel=stacklevel + 1)


def warned() -> tuple[str, ...]:
    """The newest texts in this process, each once."""
    return tuple(_texts)
