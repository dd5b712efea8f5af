"""What `tools/benchmark.py` runs: this project's training step beside other implementations of the same function.

Everything is measured in one process and one run, by the same schedule, optimizer and clock, so that ratios hold.
"""
