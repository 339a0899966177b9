"""What a training step frees stays with the process, for the next step needs as much again."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed() -> None:
    """Tell glibc neither to map large blocks one by one nor to shrink its heap.

    Otherwise each step returns its activations to the system, which fills every page with zeros before it gives it out
    again: on CPU, a tenth of a step of a model whose tensors are large. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
