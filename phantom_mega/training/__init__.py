"""The run: step, optimizer, checkpoints, signals, log.

Importing this package makes megatron-core usable on CPU first (`phantom_mega.core`).
"""

from phantom_mega import core as core  # before any module here imports megatron
