"""What a process frees, it keeps; what it starts does likewise; and what the user has set stays."""

import os
import subprocess
import sys

import pytest

from splitfed.engines.allocator import SETTINGS

# Prints how many pages the system had to hand out for a large block that the process had had a moment before.
FAULTS = """
import os, resource, subprocess, sys, threading
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(48 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def settled():
    faults()
    print(faults())
settled()
thread = threading.Thread(target=settled)
thread.start(); thread.join()
sys.stdout.flush()
"""
KEEP = "from splitfed.engines.allocator import keep_freed_memory; keep_freed_memory()\n"
CHILD = "subprocess.run([sys.executable, '-c', os.environ['FAULTS']], check=True)\n"
PAGES = (48 << 20) // os.sysconf("SC_PAGE_SIZE")


def faults(code: str, **variables: str) -> list[int]:
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment = clean | {"FAULTS": FAULTS} | variables
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [int(line) for line in found.split()]


pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or min(faults(FAULTS)) < PAGES // 2, reason="this allocator keeps it anyway"
)


def test_large_blocks_are_kept_in_all_threads_and_children() -> None:
    assert max(faults(KEEP + FAULTS + CHILD)) < PAGES // 100


def test_what_the_environment_says_is_left_alone() -> None:
    assert min(faults(KEEP + FAULTS + CHILD, MALLOC_MMAP_THRESHOLD_="65536")) > PAGES // 2
