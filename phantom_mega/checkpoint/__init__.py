"""Checkpoints as files: names, integrity, safe reading, resharding. Needs torch alone, no megatron and no GPU."""
