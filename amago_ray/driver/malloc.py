"""Keeps the C allocator from giving memory back between updates."""

from __future__ import annotations

import ctypes
import platform

# glibc's names and numbers (malloc.h). The largest values that it takes as an int.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
TRIM_THRESHOLD_BYTES = (1 << 31) - 1
TOP_PAD_BYTES = 64 << 20
MMAP_THRESHOLD_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next allocation. Returns whether the allocator agreed.

    By default glibc hands every freed block above 32 MB straight back to the kernel, and gets it again, page by page
    and zeroed, at the next update. A learner on a CPU spends up to 40 % of its time on that. The price: the process
    keeps the size of its peak. Does nothing where the C library is another.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    options = (
        (M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
        (M_TOP_PAD, TOP_PAD_BYTES),
        (M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
    )
    return all(libc.mallopt(option, value) == 1 for option, value in options)
