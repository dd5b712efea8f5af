import pytest

from phantom_mega.config import ModelConfig
from tests.checkpoint.helpers import write_checkpoint

MODEL = ModelConfig(num_layers=4, hidden_size=32, num_attention_heads=4, ffn_hidden_size=64, rope_axes_dim=[4, 2, 2])


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """A checkpoint that no test changes."""
    return write_checkpoint(tmp_path_factory.mktemp("pristine") / "iter_0000003", MODEL)
