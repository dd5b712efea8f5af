"""The parallel layouts under test, by the number of ranks they run on."""

from phantom_mega.config import ParallelConfig

# Small enough for several buckets in this model's ~450,000 parameters.
BUCKET = 40_000


def _layout(
    tp: int = 1, cp: int = 1, pp: int = 1, vpp: int | None = None, sp: bool = False, **fields
) -> ParallelConfig:
    return ParallelConfig(
        tensor_model_parallel_size=tp,
        context_parallel_size=cp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp,
        sequence_parallel=sp,
        ddp_bucket_size=BUCKET,
        distributed_timeout_minutes=1,
        **fields,
    )


_OVERLAP = dict(overlap_grad_reduce=True, overlap_param_gather=True)
_RECOMPUTE = dict(recompute_granularity="full")
_SELECTIVE = dict(recompute_granularity="selective", recompute_modules=["layernorm", "mlp_act", "core_attn"])

LAYOUTS: dict[int, dict[str, ParallelConfig]] = {
    2: {
        "tp2": _layout(tp=2),
        "tp2_sp": _layout(tp=2, sp=True),
        "tp2_sp_recompute": _layout(tp=2, sp=True, **_RECOMPUTE),
        "tp2_sp_selective_offload": _layout(tp=2, sp=True, cpu_offloading_num_layers=3, **_SELECTIVE),
        "pp2": _layout(pp=2),
        "pp2_recompute_1": _layout(pp=2, recompute_num_layers=1, **_RECOMPUTE),
        "pp2_interleaved": _layout(pp=2, vpp=2),
        "dp2_distributed_optimizer": _layout(overlap_grad_reduce=True),
        "dp2_overlap": _layout(**_OVERLAP),
        "cp2": _layout(cp=2),
        "cp2_recompute": _layout(cp=2, **_RECOMPUTE),
    },
    4: {
        "tp2_pp2_sp": _layout(tp=2, pp=2, sp=True),
        "tp2_pp2_sp_interleaved_recompute": _layout(tp=2, pp=2, vpp=2, sp=True, **_RECOMPUTE),
        "tp2_sp_dp2_overlap_recompute": _layout(tp=2, sp=True, **_OVERLAP, **_RECOMPUTE),
        "pp2_dp2_distributed_optimizer": _layout(pp=2),
        "pp2_interleaved_dp2_overlap": _layout(
            pp=2, vpp=2, recompute_granularity="selective", cpu_offloading_num_layers=1, **_OVERLAP
        ),
        "pp4": _layout(pp=4),
        "tp2_cp2": _layout(tp=2, cp=2),
        "tp2_sp_cp2_recompute": _layout(tp=2, sp=True, cp=2, **_RECOMPUTE),
        "cp2_pp2_interleaved": _layout(cp=2, pp=2, vpp=2),
        "cp2_dp2_overlap": _layout(cp=2, **_OVERLAP),
        "cp4_selective": _layout(cp=4, **_SELECTIVE),
    },
}

# Trained in bf16 too.
BF16_LAYOUTS = ("dp2_overlap", "tp2_pp2_sp", "cp2_dp2_overlap")
