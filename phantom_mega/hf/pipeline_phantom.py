"""Subject-to-video generation: 1 to 4 reference images and a prompt become a video, as a diffusers pipeline.

Paper 3.2: references stand, clean, at the temporal tail of the noisy video at every step and are dropped before
decoding; three branches guide the sampling. B: videos, C: latent channels, T: latent frames, h w: latent height and
width, n: references.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from PIL import Image

from phantom_mega.conditioning.text import FrozenTextEncoder, load_text_encoder
from phantom_mega.conditioning.vae import GPU_TILE_ABOVE, FrozenVAE, load_vae
from phantom_mega.conditioning.vision import FrozenVisionTower, load_vision_tower
from phantom_mega.errors import UserError
from phantom_mega.flow import resolution_shift
from phantom_mega.geometry import PATCH, SampleShape, patchify, token_grid, unpatchify
from phantom_mega.guidance import combine
from phantom_mega.images import image_tensor, open_reference, pad_white, to_unit

logger = logging.get_logger(__name__)
GUIDANCE_BATCHING = ("batched", "sequential")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
OPTIONAL = ["vae", "text_encoder", "tokenizer", "image_encoder"]


@dataclass
class PhantomPipelineOutput(BaseOutput):
    """What `PhantomPipeline` returns.

    Attributes:
        frames: B videos: lists of PIL images; or [B, F, height, width, 3] in [0, 1] (`np`), [B, F, 3, height, width]
            (`pt`), normalized latents [B, C, T, h, w] (`latent`).
    """

    frames: list[list[Image.Image]] | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Branch:
    """The conditions of one guidance branch: one and the same for all videos of a call.

    Attributes:
        text: [l, text_dim], features of the prompt or of the negative prompt.
        references: [n * H * W, 4 * C], clean tokens of the references, or zeros.
        clip: [n * c, clip_dim], their features by the vision tower, or zeros.
    """

    text: torch.Tensor
    references: torch.Tensor
    clip: torch.Tensor


class PhantomPipeline(DiffusionPipeline):
    """Generate videos of given subjects.

    Args:
        transformer: the `PhantomTransformer3DModel`.
        scheduler: `FlowMatchEulerDiscreteScheduler` with `use_dynamic_shifting` and `time_shift_type="linear"`.
        vae: `AutoencoderKLCogVideoX` or `LinearVideoVAE`.
        text_encoder, tokenizer: of transformers.
        image_encoder: `PhantomVisionTower`.
        conditioning: where the encoders come from (fields of the training's `conditioning` section); those that are
            None above are loaded from there at their first use.
        flow: `shift_min`, `shift_max`, `shift_min_pixels`, `shift_max_pixels` of the training: sampling shifts its
            timesteps by the video's size as training did.
        max_text_tokens: longer prompts are cut to it, as in training.
        frame_rate: frames per second of the training clips; what to write a video with.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->vae"
    _optional_components = OPTIONAL
    # open_clip reads its towers' own parameters beside their `forward`, which layer-wise offloading waits for.
    _exclude_from_cpu_offload = ["image_encoder"]  # noqa: RUF012 (diffusers reads a list)
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        transformer,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        image_encoder=None,
        conditioning: dict | None = None,
        flow: dict | None = None,
        max_text_tokens: int = 256,
        frame_rate: float = 24.0,
    ):
        super().__init__()
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
        )
        self.register_to_config(
            conditioning=dict(conditioning or {}),
            flow=dict(flow or {}),
            max_text_tokens=max_text_tokens,
            frame_rate=frame_rate,
        )
        self.video_processor = VideoProcessor(vae_scale_factor=8)
        self._interrupt = False
        self._tile_always = False

    def enable_vae_tiling(self) -> None:
        """Decode and encode every frame tile by tile; without it, a GPU tiles frames above 480p alone."""
        self._tile_always = True

    def disable_vae_tiling(self) -> None:
        """Undo `enable_vae_tiling`."""
        self._tile_always = False

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to leave the remaining steps out."""
        return self._interrupt

    # --- Encoding --------------------------------------------------------------------------------------------------

    def load_missing(self) -> None:
        """Load encoders that an export only refers to, from `config.conditioning`.

        Raises:
            UserError: one cannot be found.
        """
        missing = [name for name in OPTIONAL if getattr(self, name) is None]
        if not missing:
            return
        if not self.config.conditioning:
            raise UserError(f"the pipeline has no {', '.join(missing)}, and its config does not say where they are")
        source, device = SimpleNamespace(**self.config.conditioning), self._execution_device
        if "vae" in missing:
            self.register_modules(vae=load_vae(source, device, self.transformer.dtype).model)
        if "text_encoder" in missing or "tokenizer" in missing:
            loaded = load_text_encoder(source, device)
            self.register_modules(text_encoder=loaded.model, tokenizer=loaded.tokenizer)
        if "image_encoder" in missing:
            self.register_modules(image_encoder=load_vision_tower(source, device, self.transformer.dtype).model)

    def _frozen_vae(self) -> FrozenVAE:
        device = self._execution_device
        above = GPU_TILE_ABOVE if device.type == "cuda" else None
        return FrozenVAE(self.vae, 0 if self._tile_always else above, device)

    def encode_prompt(self, prompt: str, name: str = "prompt") -> torch.Tensor:
        """Features [l, text_dim], float32, of a prompt; too long ones are cut, with a warning."""
        encoder = FrozenTextEncoder(self.text_encoder, self.tokenizer, "the text encoder")
        limit = min(self.config.max_text_tokens, encoder.max_positions or self.config.max_text_tokens)
        tokens = encoder.count_tokens(prompt)
        if tokens > limit:
            logger.warning(f"the {name} has {tokens} tokens; it is cut to {limit}: {prompt[:80]!r}...")
        return encoder.encode([prompt], max_tokens=limit)[0].to(self._execution_device)

    def encode_references(self, images: Sequence[np.ndarray], height: int, width: int) -> tuple:
        """Clean tokens [n * H * W, 4 * C] and vision features [n * c, clip_dim] of uint8 images [h, w, 3]."""
        config = self.transformer.config
        if not images:
            device = self._execution_device
            patch = config.latent_channels * PATCH[1] * PATCH[2]
            return torch.zeros(0, patch, device=device), torch.zeros(0, config.clip_dim, device=device)
        padded = torch.stack([to_unit(pad_white(image_tensor(image), height, width)) for image in images])
        vae = self._frozen_vae()
        # One at a time: four 720p frames through the VAE together would be the peak of the whole call's memory.
        latents = torch.cat([vae.encode(image[None, :, None]) for image in padded])[:, :, 0]
        tower = FrozenVisionTower(self.image_encoder, device=self._execution_device)
        return patchify(latents.transpose(0, 1)), tower.encode(list(images)).flatten(0, 1)

    # --- Sampling --------------------------------------------------------------------------------------------------

    def check_inputs(
        self,
        prompt: str,
        negative_prompt: str,
        references: Sequence,
        size: tuple[int, int, int],
        num_inference_steps: int,
        guidance_batching: str,
        output_type: str,
    ) -> tuple[int, int, int]:
        """Refuse what cannot be generated; returns (T, H, W) in visual tokens.

        Raises:
            UserError: names the argument and the nearest right value.
        """
        for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if not isinstance(text, str):
                raise UserError(f"{name} is a {type(text).__name__}; it must be one string (call once for each prompt)")
        most = self.transformer.config.max_references
        if len(references) > most:
            raise UserError(f"{len(references)} reference images were given; the model takes at most {most}")
        if num_inference_steps < 1:
            raise UserError(f"num_inference_steps is {num_inference_steps}; the least is 1")
        for name, value, known in (
            ("guidance_batching", guidance_batching, GUIDANCE_BATCHING),
            ("output_type", output_type, OUTPUT_TYPES),
        ):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; use one of {', '.join(known)}")
        height, width, num_frames = size
        return token_grid(num_frames, height, width)

    def _branches(
        self, prompt: torch.Tensor, negative: torch.Tensor, references: torch.Tensor, clip: torch.Tensor, scales: tuple
    ) -> dict[str, Branch]:
        """The branches that count: v_null only if w_I != 1 and there are references, v_I only if w_I != w_TI."""
        image_scale, text_scale = scales
        branches = {}
        if len(references) and image_scale != 1:
            branches["null"] = Branch(negative, torch.zeros_like(references), torch.zeros_like(clip))
        # Without references v_null = v_I, so that only w_TI counts.
        if text_scale != (image_scale if len(references) else 1):
            branches["image"] = Branch(negative, references, clip)
        branches["text_image"] = Branch(prompt, references, clip)
        return branches

    def _forward(self, branches: Sequence[Branch], latents: torch.Tensor, t: torch.Tensor, shape: SampleShape) -> list:
        """Velocities [B, C, T, h, w], float32, of each branch, in one pack of branches x B samples."""
        device, dtype = self._execution_device, self.transformer.dtype
        videos = [patchify(video) for video in latents]
        count, n = len(videos), shape.references
        shapes = [
            SampleShape(shape.frames, shape.height, shape.width, n, len(branch.text), shape.clip_tokens)
            for branch in branches
            for _ in videos
        ]
        layout = self.transformer.layout(shapes, device=device)
        tokens = [part for branch in branches for video in videos for part in (video, branch.references)]
        velocity = self.transformer(
            hidden_states=torch.cat(tokens).to(dtype),
            timestep=t.expand(len(shapes)).to(device),
            encoder_hidden_states=torch.cat([branch.text for branch in branches for _ in videos]).to(dtype),
            image_embeds=torch.cat([branch.clip for branch in branches for _ in videos]).to(dtype),
            layout=layout,
        ).sample
        samples = velocity.float().split(shape.visual_tokens)
        grid = shape.frames, shape.height, shape.width
        out = [unpatchify(sample[: shape.video_tokens], *grid) for sample in samples]
        return [torch.stack(out[i * count : (i + 1) * count]) for i in range(len(branches))]

    def _guided(
        self, branches: dict[str, Branch], latents: torch.Tensor, t: torch.Tensor, shape: SampleShape, scales: tuple,
        batched: bool,
    ) -> torch.Tensor:  # fmt: skip
        """The guided velocity [B, C, T, h, w] at t [1] in [0, 1]."""
        if batched:
            found = self._forward(list(branches.values()), latents, t, shape)
        else:
            found = [self._forward([branch], latents, t, shape)[0] for branch in branches.values()]
        velocity = dict(zip(branches, found, strict=True))
        if "null" not in branches and "image" in branches:
            velocity["null"] = velocity["image"]
        # A branch that is left out has no weight, whatever stands for it.
        image = velocity.get("image", velocity["text_image"])
        return combine(velocity.get("null", image), image, velocity["text_image"], *scales)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        reference_images: Sequence[Image.Image | np.ndarray | str] | None = None,
        negative_prompt: str = "",
        height: int = 480,
        width: int = 832,
        num_frames: int = 81,
        num_inference_steps: int = 50,
        image_guidance_scale: float = 3.0,
        text_guidance_scale: float = 7.5,
        guidance_batching: str = "batched",
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> PhantomPipelineOutput | tuple:
        """Generate videos.

        Args:
            prompt: what happens, and how each subject looks.
            reference_images: 0 to 4 images (PIL, uint8 [h, w, 3] or paths); several may show one subject.
            negative_prompt: what the unguided branches read.
            height, width: pixels, multiples of 16.
            num_frames: 4k+1.
            num_inference_steps: Euler steps.
            image_guidance_scale: w_I of `guidance.combine`.
            text_guidance_scale: w_TI of `guidance.combine`.
            guidance_batching: `batched` runs the three branches as one pack, `sequential` one after the other with a
                third of the activations; results differ by rounding alone.
            num_videos_per_prompt: B, videos of different noise.
            generator: of the noise; a CPU generator gives the same noise on every device. A list has one per video.
            latents: noise [B, C, T, h, w] to start from, instead of the generator's.
            output_type: `pil`, `np`, `pt` or `latent`.
            return_dict: return `PhantomPipelineOutput` instead of a tuple.
            callback_on_step_end: called after each step with (pipeline, step, timestep, {name: tensor}); may return
                changed tensors.
            callback_on_step_end_tensor_inputs: names of those tensors; `latents` is the only one there is.

        Raises:
            UserError: an argument is not usable; names the nearest right value.
        """
        references = list(reference_images) if reference_images is not None else []
        grid = self.check_inputs(
            prompt, negative_prompt, references, (height, width, num_frames), num_inference_steps, guidance_batching,
            output_type,
        )  # fmt: skip
        images = [open_reference(image, i + 1) for i, image in enumerate(references)]
        self.load_missing()
        self._interrupt = False
        reference_tokens, clip = self.encode_references(images, height, width)
        prompts = self.encode_prompt(prompt), self.encode_prompt(negative_prompt, "negative prompt")
        scales = image_guidance_scale, text_guidance_scale
        branches = self._branches(*prompts, reference_tokens, clip, scales)
        shape = SampleShape(*grid, len(images), 0, len(clip) // len(images) if images else 0)
        latents = self._noise(latents, grid, num_videos_per_prompt, generator)
        shift = resolution_shift(height * width * num_frames, **self.config.flow)
        # Evenly from t = 1 (noise), then shifted by s t / (1 + (s-1) t), as training's timesteps were.
        sigmas = np.linspace(1.0, 0.0, num_inference_steps, endpoint=False)
        self.scheduler.set_timesteps(sigmas=sigmas, mu=shift, device=latents.device)
        timesteps = self.scheduler.timesteps
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                t = timestep[None] / self.scheduler.config.num_train_timesteps
                velocity = self._guided(branches, latents, t, shape, scales, guidance_batching == "batched")
                latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    given = {name: {"latents": latents}[name] for name in callback_on_step_end_tensor_inputs}
                    latents = (callback_on_step_end(self, i, timestep, given) or {}).get("latents", latents)
                bar.update()
        frames = latents if output_type == "latent" else self.decode(latents, output_type)
        self.maybe_free_model_hooks()
        return PhantomPipelineOutput(frames=frames) if return_dict else (frames,)

    def decode(self, latents: torch.Tensor, output_type: str = "pil"):
        """Normalized latents [B, C, T, h, w] to frames, as `PhantomPipelineOutput` says; one video at a time."""
        vae = self._frozen_vae()
        video = torch.cat([vae.decode(one[None]) for one in latents])
        return self.video_processor.postprocess_video(video, output_type=output_type)

    def _noise(self, latents: torch.Tensor | None, grid: tuple, count: int, generator) -> torch.Tensor:
        """float32 [B, C, T, h, w].

        Raises:
            UserError: given latents have another shape, or there are not as many generators as videos.
        """
        channels = self.transformer.config.latent_channels
        size = (count, channels, grid[0], grid[1] * PATCH[1], grid[2] * PATCH[2])
        if isinstance(generator, list) and len(generator) != count:
            raise UserError(f"{len(generator)} generators were given for {count} videos; give one for each, or one")
        if latents is None:
            return randn_tensor(size, generator=generator, device=self._execution_device, dtype=torch.float32)
        if tuple(latents.shape) != size:
            raise UserError(f"latents have shape {list(latents.shape)}; this video needs {list(size)}")
        return latents.to(self._execution_device, torch.float32)
