"""What the processes of a run warn of, said by the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from amago_ray.warned import warned


class Hearing:
    """Says every text that it hears once, and none that was warned of in this process: that was shown already."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._said: set[str] = set()

    def hear(self, texts: Iterable[str]) -> None:
        for text in texts:
            if text not in self._said and text not in warned():
                self._said.add(text)
                self._say(f"warning: {text}")
