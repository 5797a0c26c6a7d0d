"""Rollouts for the inspector: each is played by a process of its own, which can fail or hang without harm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from amago_ray.config.value_checks import check_temperature

MAX_LINE_BYTES = 8 * 2**20  # a picture and an observation
MAX_STEPS = 2000
ENDS_WITHIN_S = 2.0  # of being asked to


class PlayedRollout:
    """A process that prints a line of JSON per step.

    async with PlayedRollout(command) as rollout:
        async for line in rollout.lines():
            ...

    However the block is left, the process has ended.
    """

    def __init__(self, command: Sequence[str]):
        self._command = command

    @staticmethod
    def command(inspect: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        """`inspect` with what a page chose. Raises ValueError for what is no choice."""
        command = [*inspect, "--seed", str(_integer(options, "seed", 0, 2**31 - 1))]
        command += ["--max-steps", str(_integer(options, "max_steps", 1, MAX_STEPS, 500))]
        if options.get("epoch") is not None:
            command += ["--epoch", str(_integer(options, "epoch", 0, 2**31 - 1))]
        if options.get("greedy"):
            return [*command, "--greedy"]
        temperature = options.get("temperature")
        if temperature is not None:
            check_temperature(temperature, f"temperature={temperature!r}")
            command += ["--temperature", str(float(temperature))]
        return command

    async def __aenter__(self) -> PlayedRollout:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, limit=MAX_LINE_BYTES
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        self._out, self._error = self._process.stdout, asyncio.create_task(self._process.stderr.read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), ENDS_WITHIN_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._error.cancel()

    async def lines(self) -> AsyncIterator[bytes]:
        """What it prints; where it failed, last {"kind": "error", "text"}. What is no JSON object is passed over."""
        async for line in self._out:  # environments may print, too
            if line.startswith(b'{"kind"'):
                yield line
        if await self._process.wait():
            said = (await self._error).decode(errors="replace").strip().splitlines()
            text = said[-1] if said else f"the rollout ended with exit status {self._process.returncode}"
            yield json.dumps({"kind": "error", "text": text}).encode() + b"\n"


def _integer(options: Mapping[str, Any], name: str, low: int, high: int, default: int = 0) -> int:
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}={value!r}: it must be a whole number from {low} to {high}")
    return value
