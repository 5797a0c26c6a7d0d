"""Which line of what a dead process wrote says why it died."""

from __future__ import annotations

import pytest

from amago_ray.driver.last_words import last_words, words

SEGFAULT = """\
:job_id:01000000
:actor_name:RolloutActor
loading the simulator
*** SIGSEGV received at time=1795665317 on cpu 0 ***
PC: @     0x7feb78185ad8  (unknown)  (unknown)
[2026-11-26 03:55:17,889 E 17805 17805] logging.cc:474: *** SIGSEGV received at time=1795665317 on cpu 0 ***
Fatal Python error: Segmentation fault

  File "simulator.py", line 6 in __init__
Extension modules: numpy (total: 1)
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SEGFAULT, "Fatal Python error: Segmentation fault"),
        (":job_id:1\n:actor_name:RolloutActor\nthe licence server is gone\n\n", "the licence server is gone"),
        ("a\nRuntimeError: no display\nbye\n", "RuntimeError: no display"),
        (":job_id:1\n", ""),
    ],
)
def test_the_line_that_says_most(text: str, said: str) -> None:
    assert words(text) == said


def test_without_ray_nobody_has_said_anything() -> None:
    assert last_words(int) == ""
