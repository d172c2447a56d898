"""How glibc's allocator is set for training: what a mini-batch frees stays with the process, for the next one.

By default it gives large blocks back to the system as soon as they are free, and keeps an arena for every few threads;
a training step then spends some hundredths of its time on pages that it had a moment before (benchmarks/allocator.py).
Other allocators, and environments that set these variables themselves, are left alone.
"""

import ctypes
import os
import platform

# By the environment's names (mallopt(3)): the number that `mallopt` knows them by, and the value.
SETTINGS = {
    "MALLOC_ARENA_MAX": (-8, 1),  # threads take turns at computing, so one arena serves them all
    "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30),  # above a large model's largest activation
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # never: a step frees gigabytes at its end
}


def keep_freed_memory() -> None:
    """Set the allocator of this process, before it has threads, and of all that it will start."""
    if platform.libc_ver()[0] != "glibc":
        return
    for name, (number, value) in SETTINGS.items():
        if name not in os.environ and ctypes.CDLL(None).mallopt(number, value):
            os.environ[name] = str(value)
