"""Kernels of this project's own, in Triton; every one has a plain PyTorch equal elsewhere in the package."""
