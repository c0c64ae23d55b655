"""What a step frees is there for the next one, without new pages from the system."""

import platform
import subprocess
import sys

import pytest

PAGES_OF_THE_SECOND_ROUND = """
import resource, sys
from training.memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * (48 << 20) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(how: str) -> int:
    command = [sys.executable, "-c", PAGES_OF_THE_SECOND_ROUND, how]
    return int(subprocess.run(command, check=True, text=True, capture_output=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")
def test_memory_that_was_freed_is_taken_again_without_new_pages():
    assert pages("as usual") > 10_000
    assert pages("kept") < 100
