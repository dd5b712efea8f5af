"""Tests on several gloo ranks, started by torchrun."""
