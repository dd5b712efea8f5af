"""A worker whose rank 1 fails or hangs, for test_launch.py."""

import os
import time

from tests.parallel.launch import run_rank


def main(folder, arguments):
    """Rank 0 waits as it would in a collective."""
    if os.environ["RANK"] == "1" and arguments == ["fail"]:
        raise ValueError("on purpose")
    time.sleep(120)


if __name__ == "__main__":
    run_rank(main)
