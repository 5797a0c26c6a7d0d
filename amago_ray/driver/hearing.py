"""What the processes of a run warn of, said by the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Hearing:
    """Says every text that it hears, once."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._said: set[str] = set()

    def hear(self, texts: Iterable[str]) -> None:
        for text in texts:
            if text not in self._said:
                self._said.add(text)
                self._say(f"warning: {text}")
