"""Releases: training checkpoints to diffusers folders and back."""
