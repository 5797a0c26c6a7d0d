"""The allocator's options are taken where the C library has them."""

from __future__ import annotations

import platform

from amago_ray.driver.malloc import keep_freed_memory


def test_options_are_taken_by_glibc_and_by_it_alone():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
