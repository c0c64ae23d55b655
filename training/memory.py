"""The memory of a run on a CPU: what a step frees is kept for the next one."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tell this process's malloc to keep what is freed; return whether it can be told (it can where it is glibc's).

    A training step frees its activations, hundreds of megabytes, and takes as many again in the next one. As it is set up,
    malloc hands large blocks back to the system, which maps and zeroes every page anew. Here blocks of any size come from the
    heap (M_MMAP_MAX 0), and the heap never shrinks (M_TRIM_THRESHOLD -1); see mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
