"""What a release ships: the plain PyTorch model. Nothing here imports megatron."""

from phantom_mega.hf.transformer_phantom import PhantomTransformer3DModel

__all__ = ["PhantomTransformer3DModel"]
