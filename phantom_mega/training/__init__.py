"""The run: step, optimizer, checkpoints, signals, log."""
