"""Checkpoints out of training and into it: exports for diffusers, and starts from releases and base models."""
