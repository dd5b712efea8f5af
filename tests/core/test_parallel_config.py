"""What megatron-core is told about a layout."""

import pytest
import torch

from phantom_mega.config import ModelConfig, ParallelConfig, PrecisionConfig
from phantom_mega.core.parallel_config import ddp_config, transformer_config

MODEL = ModelConfig()


@pytest.mark.parametrize("vpp", [None, 2])
def test_interleaved_schedule_always_overlaps_its_messages(vpp):
    parallel = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=vpp)
    config = transformer_config(MODEL, parallel, PrecisionConfig())
    assert (config.overlap_p2p_comm, config.batch_p2p_comm) == ((True, False) if vpp else (False, True))


def test_context_parallelism_reaches_the_schedules_that_size_hidden_states_by_it():
    assert (
        transformer_config(MODEL, ParallelConfig(context_parallel_size=2), PrecisionConfig()).context_parallel_size == 2
    )


def test_bf16_computes_in_bf16_and_reduces_gradients_in_fp32():
    config = transformer_config(MODEL, ParallelConfig(), PrecisionConfig(bf16=True))
    assert (config.params_dtype, config.bf16) == (torch.bfloat16, True)
    assert ddp_config(ParallelConfig(), PrecisionConfig(bf16=True)).grad_reduce_in_fp32
    assert not ddp_config(ParallelConfig(), PrecisionConfig()).grad_reduce_in_fp32


def test_losses_are_summed_per_token_and_conditioning_gradients_over_stages():
    config = transformer_config(MODEL, ParallelConfig(), PrecisionConfig())
    assert config.calculate_per_token_loss and config.has_cond_embedder and config.qk_layernorm
