"""A worker whose rank 1 fails or hangs, for test_launch.py."""

import os
import time


def main(folder, arguments):
    """Rank 0 waits as it would in a collective."""
    if os.environ["RANK"] == "1" and arguments == ["fail"]:
        raise ValueError("on purpose")
    time.sleep(120)
