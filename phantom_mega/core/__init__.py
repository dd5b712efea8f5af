"""The MMDiT on megatron-core: tensor, sequence, pipeline and data parallel."""
