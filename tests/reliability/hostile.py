"""What the tests of hostile files share: limits, a payload that shows that it ran, and headers that lie."""

import json
import os
import resource
import signal
import struct
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, name="bounded")
def bounded_fixture():
    """Four GB of address space more than now, and a minute: what a hostile file asks for fails, it is not taken."""

    def stop(*_):
        pytest.fail("a hostile file was read without end")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.alarm(0)


@pytest.fixture(name="marker")
def marker_fixture(tmp_path):
    """A file that only executed code would create."""
    return tmp_path / "executed"


class Payload:
    """Unpickling it creates the marker."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def tensors(spans, data=b"", size=None):
    """A safetensors file whose header (name -> shape, begin, end; or bytes) may lie."""
    entry = lambda shape, *offsets: {"dtype": "F32", "shape": shape, "data_offsets": offsets}  # noqa: E731
    text = spans if isinstance(spans, bytes) else json.dumps({name: entry(*span) for name, span in spans.items()})
    text = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


LYING_TENSORS = {
    "no header": b"",
    "a header of exabytes": tensors({}, size=1 << 62),
    "a header larger than the file": tensors({}, size=90_000_000),
    "a header of brackets": tensors(b"[" * 100_000),
    "a tensor that is not there": tensors({"a": ([1 << 40], 0, 4 << 40)}),
    "a tensor larger than its bytes": tensors({"a": ([1 << 40], 0, 4)}, b"1234"),
    "a tensor that overflows": tensors({"a": ([1 << 40, 1 << 40], 0, 4)}, b"1234"),
    "a tensor before the first byte": tensors({"a": ([1], -4, 0)}, b"1234"),
}
