"""Images come and go without page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from proto.large_blocks import keep_large_blocks
if sys.argv[1] == "kept":
    keep_large_blocks()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytes(1 << 20)
before = faults()
for _ in range(100):
    # Two sizes, one after the other, as glibc adapts to a single one by itself.
    first, second = bytearray(b"x" * (1 << 20)), bytearray(b"x" * (3 << 20))
    del first, second
print(faults() - before)
"""


def faults(how: str, path: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": path},
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc's malloc")
def test_large_blocks_are_used_again() -> None:
    path = ":".join(part for part in sys.path if part)
    assert faults("kept", path) * 10 < faults("given back", path)
