"""The X-Dyna pipeline: a photo, a clip of pose maps and (optionally) face maps in, a video out.

Imports are absolute: diffusers copies this file elsewhere when it is loaded as a `custom_pipeline`.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DiffusionPipeline
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.image_processing_utils import BaseImageProcessor

from xdyna import inputs, windows
from xdyna.adapters.host import SiteAdapter
from xdyna.adapters.image_prompt import ImagePromptAdapter
from xdyna.denoise import Conditioning, Control, Predictor, predict_clip
from xdyna.latents import (
    clip_size,
    condition_maps,
    mask_frames,
    noise_frames,
    split_generator,
    start_clip,
)
from xdyna.prompts import StoredPrompt
from xdyna.resume import DenoiseState
from xdyna.stepping import scale_clip, step_clip
from xdyna.unet import XDynaUNet

logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class XDynaPipelineOutput(BaseOutput):
    """What a call returns.

    Attributes:
        frames: by `output_type`: `pil` a list with one list of F images; `np` [1, F, H, W, 3] and `pt`
            [1, F, 3, H, W], float32 in 0..1; `latent` [1, C, F, h, w].
    """

    frames: Tensor | NDArray[np.float32] | list[list[Image.Image]]


class XDynaPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Animates the person, and the scene, of one picture with the motion of a clip.

    Methods that all pipelines have (saving, loading, devices, offloading) are [`DiffusionPipeline`]'s; LoRA files are
    loaded with [`~loaders.StableDiffusionLoraLoaderMixin.load_lora_weights`].

    Args:
        vae: pictures to latents and back, frame by frame.
        unet: the video UNet. The adapters are attached to it here.
        scheduler: any of the schedulers that AnimateDiff pipelines take.
        pose_controlnet: reads pose maps (3 channels).
        face_controlnet: reads face maps (6 channels: local, global).
        dynamics_adapter: reads the reference frame: a [`DynamicsAdapter`], or a [`ReferenceNet`] in its place.
        image_prompt: image tokens of the reference in the cross-attention.
        text_encoder: with `tokenizer`, encodes prompts.
        tokenizer: see `text_encoder`.
        image_encoder: with `feature_extractor`, encodes the reference for `image_prompt`.
        feature_extractor: see `image_encoder`.
        stored_prompt: the embedding of the empty prompt, for a model without a text encoder.
        size_limits: `min_wh`, `max_wh` ([width, height], pixels) and `multiple` of the sizes the model takes; `None`
            for any multiple of 8.
        schedule: how clips are cut into windows unless a call says otherwise (see `xdyna.windows`).
        shared_noise: all frames of a clip start from the same noise, for models trained so: what does not move in the
            picture then does not flicker.
        start_keep: share of the reference's latent elements, 0..1, that the start of the denoising keeps; the others
            take their blur.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->image_prompt->unet->vae"
    # Attached layers are the UNet's children as well and travel with it; two sets of hooks would fight over them.
    _exclude_from_cpu_offload = ["dynamics_adapter", "image_prompt"]  # noqa: RUF012 (diffusers' name and form)
    _optional_components = [  # noqa: RUF012 (diffusers' name and form)
        "face_controlnet",
        "dynamics_adapter",
        "image_prompt",
        "text_encoder",
        "tokenizer",
        "image_encoder",
        "feature_extractor",
        "stored_prompt",
    ]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]  # noqa: RUF012

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: XDynaUNet,
        scheduler: KarrasDiffusionSchedulers,
        pose_controlnet: ControlNetModel,
        face_controlnet: ControlNetModel | None = None,
        dynamics_adapter: SiteAdapter | None = None,
        image_prompt: ImagePromptAdapter | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: BaseImageProcessor | None = None,
        stored_prompt: StoredPrompt | None = None,
        size_limits: dict[str, Any] | None = None,
        schedule: str = "open",
        shared_noise: bool = False,
        start_keep: float = 0.5,
    ) -> None:
        super().__init__()
        self.register_modules(
            dynamics_adapter=dynamics_adapter,  # the adapters first: offloading goes in this order
            image_prompt=image_prompt,
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            pose_controlnet=pose_controlnet,
            face_controlnet=face_controlnet,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            stored_prompt=stored_prompt,
        )
        self.register_to_config(
            size_limits=size_limits, schedule=schedule, shared_noise=shared_noise, start_keep=start_keep
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.sizes = inputs.SizeLimits.build(size_limits, self.vae_scale_factor)
        for adapter in (dynamics_adapter, image_prompt):
            if adapter is not None and not adapter.is_on(unet):
                adapter.attach(unet)

    def register_to_config(self, **kwargs: Any) -> None:
        """As in diffusers; our own classes are recorded under `xdyna`, wherever in the package they live.

        Otherwise diffusers would record, and on loading expect to find imported, each class's own module.
        """
        for name, value in kwargs.items():
            if isinstance(value, (tuple, list)) and len(value) == 2 and str(value[0]).startswith("xdyna."):
                kwargs[name] = ("xdyna", value[1])
        super().register_to_config(**kwargs)

    # --- what a run is doing, for callbacks -------------------------------------------------------------------------

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """At 1 or less the conditional half alone runs: at exactly 1 the unconditional one would cancel out."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def state_after(self, step: int, latents: Tensor, *, copy: bool = True) -> DenoiseState:
        """For a callback: where the call stands after step number `step` (from 0), with its latents.

        A call with the same arguments and this as its `state` goes on from there with the same numbers. Without `copy`
        it must be saved, or thrown away, before the next step begins.
        """
        return DenoiseState.of(step + 1, latents, self.scheduler, self._step_stream, copy=copy)

    # --- memory -----------------------------------------------------------------------------------------------------

    def enable_vae_slicing(self) -> None:
        """Let the VAE take the frames of a batch one at a time."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Let the VAE cut large frames into tiles; results differ slightly."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        self.vae.disable_tiling()

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Any = None) -> None:
        """Refused: xformers' processors would take the place of the adapters'. Fused attention is used anyway."""
        raise ValueError("xformers would take the adapters off the UNet; torch's fused attention is in use already")

    # --- inputs -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_prompt(self, prompt: str | None, name: str = "prompt") -> Tensor:
        """Text embedding [1, T, D] of a prompt; of the empty prompt for None.

        Raises:
            ValueError: not a string, or a prompt for a model that only knows the empty one.
        """
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"{name} is {inputs.describe(prompt)}, wanted one string")
        if self.tokenizer is None or self.text_encoder is None:
            if prompt:
                raise ValueError(f"{name} is {prompt!r}: this model has no tokenizer and knows only the empty prompt")
            if self.stored_prompt is None:
                raise ValueError("this model has neither text encoder nor stored prompt: pass prompt_embeds")
            return self.stored_prompt(1)
        length = self.unet.config.num_text_tokens
        tokens = self.tokenizer(
            prompt or "", padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        if len(self.tokenizer(prompt or "").input_ids) > length:
            logger.warning(f"{name} is longer than {length} tokens: its end is not used")
        return self.text_encoder(tokens.input_ids.to(self._execution_device))[0]

    @torch.no_grad()
    def encode_image(self, image: Any, negative: bool = True) -> tuple[Tensor, Tensor | None]:
        """Penultimate hidden states [1, S, E] of the image encoder.

        Args:
            image: whole picture in any form that `reference` takes.
            negative: also encode the unconditional input: pixels that are zero after normalisation.

        Raises:
            ValueError: the model has no image encoder.
        """
        if self.image_encoder is None or self.feature_extractor is None:
            raise ValueError("this model has an image prompt but no image encoder: pass image_embeds")
        photo = inputs.picture(image, "prompt_image")
        pixels = self.feature_extractor(images=photo, return_tensors="pt").pixel_values
        pixels = pixels.to(self._execution_device, self.image_encoder.dtype)

        def penultimate(x: Tensor) -> Tensor:
            return self.image_encoder(x, output_hidden_states=True).hidden_states[-2]

        return penultimate(pixels), penultimate(torch.zeros_like(pixels)) if negative else None

    @torch.no_grad()
    def encode_reference(
        self, reference: Any, size_wh: tuple[int, int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Clean latents of a picture, [1, C, 1, h, w], float32: a sample of the VAE's posterior.

        Args:
            reference: picture as for a call.
            size_wh: (width, height), pixels.
            generator: draws the sample; the posterior's mode without one.
        """
        photo = inputs.photo_tensor(reference, size_wh).to(self._execution_device, self.vae.dtype)
        posterior = self.vae.encode(photo).latent_dist
        latents = posterior.mean.float()
        if generator is not None:  # in float32 whatever the VAE's type, so that the draws are the same
            noise = randn_tensor(latents.shape, generator, latents.device, torch.float32)
            latents = latents + posterior.std.float() * noise
        shift = self.vae.config.shift_factor or 0.0
        return ((latents - shift) * self.vae.config.scaling_factor).unsqueeze(2)

    @torch.no_grad()
    def decode_frames(
        self, latents: Tensor, vae_batch: int = 1, decoder: AutoencoderTiny | None = None
    ) -> Iterator[Tensor]:
        """Decode a clip as a stream, `vae_batch` frames at a time.

        Args:
            latents: [1, C, F, h, w].
            vae_batch: frames per call of the VAE.
            decoder: decodes in the VAE's place.

        Yields:
            float32 [n, 3, H, W], 0..1, n up to `vae_batch`.
        """
        vae = self.vae if decoder is None else decoder
        shift = vae.config.shift_factor or 0.0
        device = self._execution_device  # diffusers walks through every module for it: not once per frame
        for frames in latents[0].transpose(0, 1).split(vae_batch):
            scaled = (frames.to(device) / vae.config.scaling_factor + shift).to(vae.dtype)
            decoded = vae.decode(scaled).sample
            yield (decoded.float() / 2 + 0.5).clamp(0, 1)

    def _text(
        self, prompt: Any, prompt_embeds: Tensor | None, negative_prompt: Any, negative_prompt_embeds: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        shape = (1, self.unet.config.num_text_tokens, self.unet.config.cross_attention_dim)

        def embed(text: Any, embeds: Tensor | None, name: str) -> Tensor:
            if text is not None and embeds is not None:
                raise ValueError(f"both {name} and {name}_embeds are given, wanted one of them")
            embeds = inputs.shaped(embeds, shape, f"{name}_embeds")
            embeds = self.encode_prompt(text, name) if embeds is None else embeds
            embeds = inputs.shaped(embeds, shape, f"the embedding of {name}")
            return embeds.to(self._execution_device, self.unet.dtype)

        negative = None
        if self.do_classifier_free_guidance:
            negative = embed(negative_prompt, negative_prompt_embeds, "negative_prompt")
        return embed(prompt, prompt_embeds, "prompt"), negative

    def _image_tokens(
        self,
        image: Any,
        image_embeds: Tensor | None,
        negative_image_embeds: Tensor | None,
        image_tokens: Tensor | None,
        negative_image_tokens: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        guided, num_tokens = self.do_classifier_free_guidance, self.unet.num_image_tokens
        shape = (1, num_tokens, self.unet.config.cross_attention_dim)
        if num_tokens == 0:
            given = [
                x for x in (image_embeds, negative_image_embeds, image_tokens, negative_image_tokens) if x is not None
            ]
            if given:
                raise ValueError("image embeddings or tokens are given, but this model has no image prompt attached")
            none = torch.zeros(shape, device=self._execution_device, dtype=self.unet.dtype)
            return none, none if guided else None
        missing = image_tokens is None and image_embeds is None
        negative_missing = guided and negative_image_tokens is None and negative_image_embeds is None
        if missing or negative_missing:
            if image is None and missing:
                raise ValueError("reference is None: pass prompt_image, image_embeds or image_tokens")
            source = image if image is not None else Image.new("RGB", (8, 8))  # its embedding is not used
            encoded, zeros = self.encode_image(source, negative=negative_missing)
            image_embeds = encoded if missing else image_embeds
            negative_image_embeds = zeros if negative_missing else negative_image_embeds

        def tokens(given: Tensor | None, embeds: Tensor | None, name: str) -> Tensor:
            if given is None:
                if embeds is None or embeds.ndim != 3 or len(embeds) != 1:
                    raise ValueError(f"{name}_embeds is {inputs.describe(embeds)}, wanted [1, S, E]")
                given = self.image_prompt(embeds.to(self._execution_device, self.image_prompt.dtype))
            return inputs.shaped(given, shape, f"{name}_tokens").to(self._execution_device, self.unet.dtype)

        negative = tokens(negative_image_tokens, negative_image_embeds, "negative_image") if guided else None
        return tokens(image_tokens, image_embeds, "image"), negative

    def _controls(
        self,
        pose_maps: Any,
        face_maps: Any,
        size_wh: tuple[int, int],
        scales: tuple[float, float],
        starts: tuple[float, float],
        ends: tuple[float, float],
    ) -> list[Control]:
        for name, start, end in zip(("pose", "face"), starts, ends, strict=True):
            if not 0 <= start < end <= 1:
                raise ValueError(f"{name} control is on from {start} to {end}, wanted 0 <= start < end <= 1")
        pose = condition_maps(pose_maps, size_wh)
        controls = [Control(self.pose_controlnet, (pose,), scales[0], starts[0], ends[0])]
        if face_maps is None:
            return controls
        if self.face_controlnet is None:
            raise ValueError("face_maps are given, but this model has no face ControlNet")
        if not isinstance(face_maps, (tuple, list)) or len(face_maps) != 2:
            raise ValueError(f"face_maps is {inputs.describe(face_maps)}, wanted a pair (local maps, global maps)")
        names = ("local face_maps", "global face_maps")
        face = tuple(condition_maps(maps, size_wh, name) for maps, name in zip(face_maps, names, strict=True))
        for clip, name in zip(face, names, strict=True):
            if clip.num_frames != pose.num_frames:
                raise ValueError(f"{name} have {clip.num_frames} frames, pose_maps {pose.num_frames}: wanted as many")
        return [*controls, Control(self.face_controlnet, face, scales[1], starts[1], ends[1])]

    # --- running ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _adapter_strength(self, scale: float) -> Iterator[None]:
        """Set the Dynamics-Adapter's strength for the duration."""
        if self.dynamics_adapter is None:
            if scale != 1:
                raise ValueError(f"adapter_scale is {scale}, but this model has no Dynamics-Adapter")
            yield
            return
        before = self.dynamics_adapter.scale
        self.dynamics_adapter.scale = scale
        try:
            yield
        finally:
            self.dynamics_adapter.scale = before

    def _extra_step_kwargs(self, generator: torch.Generator, eta: float) -> dict[str, Any]:
        """Keywords that only some schedulers' `step` has."""
        known = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in known}

    @torch.no_grad()
    def __call__(
        self,
        reference: Any,
        pose_maps: Any,
        face_maps: Any = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 7.5,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_image: Any = None,
        image_embeds: Tensor | None = None,
        negative_image_embeds: Tensor | None = None,
        image_tokens: Tensor | None = None,
        negative_image_tokens: Tensor | None = None,
        pose_scale: float = 1.0,
        face_scale: float = 1.0,
        controlnet_conditioning_scale: float | tuple[float, float] | None = None,
        adapter_scale: float = 1.0,
        control_guidance_start: float | tuple[float, float] = 0.0,
        control_guidance_end: float | tuple[float, float] = 1.0,
        window: int = windows.DEFAULT_SIZE,
        overlap: int = windows.DEFAULT_OVERLAP,
        schedule: str | None = None,
        window_batch: int = 1,
        vae_batch: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        reference_latents: Tensor | None = None,
        noise: Tensor | Iterator[Tensor] | None = None,
        mask: Tensor | None = None,
        window_offsets: Sequence[int] | None = None,
        predictor: Predictor = predict_clip,
        state: DenoiseState | None = None,
        latents_device: torch.device | str | None = None,
    ) -> XDynaPipelineOutput | tuple[Any]:
        """Animate `reference` with the motion of `pose_maps`.

        Args:
            reference: the picture: PIL image, uint8 [H, W, 3], or float tensor [3, H, W] in 0..1. One of another size
                is cut to the ratio about its centre and resized. May be None when `reference_latents` is given.
            pose_maps: F drawn skeletons: uint8 [F, H, W, 3], list of PIL images, or float tensor [F, 3, H, W]. They
                are stretched to 0..1 by the clip's extremes.
            face_maps: pair (local, global) of face maps, each like `pose_maps`; None for no face control.
            prompt: text; None is the empty prompt.
            negative_prompt: text of the unconditional half.
            height: of the video, pixels; by default the pose maps' height rounded down to the model's multiple.
            width: likewise.
            num_inference_steps: denoising steps.
            guidance_scale: strength of classifier-free guidance; at 1 or less the conditional half alone runs.
            eta: of the DDIM paper; other schedulers ignore it.
            generator: of every random number. The same generator state gives the same result. Without one, a new
                generator is seeded from torch's global one.
            latents: start of the denoising [1, C, F, h, w], in the scheduler's scale at its first timestep, instead of
                one made from reference, noise and mask.
            prompt_embeds: [1, T, D] instead of `prompt`.
            negative_prompt_embeds: [1, T, D] instead of `negative_prompt`.
            prompt_image: picture for the image tokens, by default `reference`, whole and uncropped.
            image_embeds: hidden states [1, S, E] of the image encoder instead of `prompt_image`.
            negative_image_embeds: likewise for the unconditional half.
            image_tokens: [1, n, D], the Resampler's output, instead of `image_embeds`.
            negative_image_tokens: likewise for the unconditional half.
            pose_scale: strength of the pose ControlNet.
            face_scale: strength of the face ControlNet.
            controlnet_conditioning_scale: diffusers' name for both: one number or (pose, face), instead of
                `pose_scale` and `face_scale`.
            adapter_scale: strength of the Dynamics-Adapter.
            control_guidance_start: fraction of the steps at which the ControlNets begin, one or (pose, face).
            control_guidance_end: fraction of the steps at which they end.
            window: driving frames that the motion modules see at once.
            overlap: frames that neighbouring windows share.
            schedule: `open` (windows never wrap, blended by weights), `closed` (official loop, plain average) or `grid`
                (as `open`, but windows begin at fixed frames); None is the model's own.
            window_batch: windows per call of the networks. Changes speed and memory; results only by rounding.
            vae_batch: frames per call of the VAE. Likewise.
            output_type: `pil`, `np`, `pt` or `latent`.
            return_dict: return an [`XDynaPipelineOutput`], else a tuple.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after each step; what it
                returns replaces the tensors of that name. Set `pipeline._interrupt` in it to stop.
            callback_on_step_end_tensor_inputs: names of the tensors it gets: latents, prompt_embeds,
                negative_prompt_embeds.
            reference_latents: clean latents [1, C, 1, h, w] of the reference instead of an encoding of it.
            noise: [1, C, F, h, w] (or F+1, reference first) standard normal noise instead of drawn noise; or an
                iterator that gives the F frames' noise, [C, h, w], one after the other.
            mask: likewise, true where the start keeps the reference, false where it takes its blur.
            window_offsets: shift of the windows for each timestep of the scheduler instead of drawn ones.
            predictor: makes each step's prediction: the plain way by default; `xdyna.infer.engine` has others.
            state: where an earlier call with the same other arguments stood (see `state_after`); the steps before are
                left out.
            latents_device: where the clip's latents lie, by default where the networks run. From the host ("cpu") they
                go to the networks and the scheduler a few frames at a time, so that a GPU's memory does not grow with
                the clip; the numbers are the same.

        Returns:
            [`XDynaPipelineOutput`] or a tuple of its fields.

        Raises:
            ValueError: an input that does not fit; the message says what was got and what was wanted.
        """
        # 1. Check inputs
        schedule = self.config.schedule if schedule is None else schedule
        num_frames, maps_wh = clip_size(pose_maps)
        default_wh = self.sizes.round_down(maps_wh)
        size_wh = (
            inputs.count(default_wh[0] if width is None else width, "width"),
            inputs.count(default_wh[1] if height is None else height, "height"),
        )
        self._check_call(
            size_wh, num_frames, window, overlap, schedule, output_type, generator, callback_on_step_end_tensor_inputs
        )
        if reference is None and reference_latents is None:
            raise ValueError("reference is None: pass a picture, or reference_latents")
        num_inference_steps = inputs.count(num_inference_steps, "num_inference_steps")
        window_batch, vae_batch = inputs.count(window_batch, "window_batch"), inputs.count(vae_batch, "vae_batch")
        self._guidance_scale = inputs.finite(guidance_scale, "guidance_scale", low=0.0)
        self._interrupt = False
        eta = inputs.finite(eta, "eta", low=0.0)
        shape_hw = (size_wh[1] // self.vae_scale_factor, size_wh[0] // self.vae_scale_factor)
        frame_shape = (self.unet.config.in_channels, *shape_hw)
        clip_shape = (1, frame_shape[0], num_frames, *shape_hw)
        latents = inputs.shaped(latents, clip_shape, "latents")
        if not isinstance(noise, Iterator):
            noise = inputs.shaped(noise, clip_shape, "noise", with_reference=True)
        mask = inputs.shaped(mask, clip_shape, "mask", with_reference=True)
        reference_latents = inputs.shaped(reference_latents, (1, frame_shape[0], 1, *shape_hw), "reference_latents")
        device = self._execution_device
        clip_device = device if latents_device is None else torch.device(latents_device)

        # 2. Streams of random numbers. All are split off at once, so that passing noise, say, shifts no other stream.
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(0, 2**63 - 1, (1,))))
        vae_generator = generator.clone_state()
        noise_stream, mask_stream, offset_stream, step_stream = split_generator(generator, 4)

        # 3. Encode what the prediction depends on
        controls = self._controls(
            pose_maps,
            face_maps,
            size_wh,
            _control_scales(pose_scale, face_scale, controlnet_conditioning_scale),
            inputs.pair(control_guidance_start, "control_guidance_start"),
            inputs.pair(control_guidance_end, "control_guidance_end"),
        )
        text, negative_text = self._text(prompt, prompt_embeds, negative_prompt, negative_prompt_embeds)
        tokens, negative_tokens = self._image_tokens(
            reference if prompt_image is None else prompt_image,
            image_embeds,
            negative_image_embeds,
            image_tokens,
            negative_image_tokens,
        )
        if reference_latents is None:
            reference_latents = self.encode_reference(reference, size_wh, vae_generator)
        reference_latents = reference_latents.to(device, torch.float32)
        conditioning = Conditioning(reference_latents, text, negative_text, tokens, negative_tokens, controls)

        # 4. Timesteps, windows, start
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        if window_offsets is None:
            window_offsets = windows.draw_offsets(offset_stream, len(timesteps), schedule, window, overlap)
        if len(window_offsets) != len(timesteps):
            raise ValueError(f"{len(window_offsets)} window_offsets, wanted one for each of {len(timesteps)} timesteps")
        window_offsets = [inputs.count(offset, "a window offset", low=0) for offset in window_offsets]
        if latents is None:
            shared = self.config.shared_noise
            keep = self.config.start_keep
            drawn = (
                noise_frames(frame_shape, noise_stream, shared=shared) if noise is None else _by_frame(noise),
                mask_frames(frame_shape, mask_stream, keep, shared=shared) if mask is None else _by_frame(mask),
            )
            latents = start_clip(reference_latents, *drawn, self.scheduler, timesteps[0], num_frames, clip_device)
            del drawn
        del noise, mask  # noise may be as large as the latents of the whole clip
        latents = latents.to(clip_device, torch.float32)
        extra = self._extra_step_kwargs(step_stream, eta)
        self._step_stream = step_stream
        first_step = 0
        if state is not None:
            if state.latents.shape != latents.shape:
                got = list(state.latents.shape)
                raise ValueError(f"the state has latents of shape {got}, wanted {list(latents.shape)}")
            first_step, latents = state.step, state.restore(self.scheduler, step_stream, clip_device)

        # 5. Denoise. Latents stay in float32; the networks get their own type.
        num_warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        adapter_scale = inputs.finite(adapter_scale, "adapter_scale")
        with self._adapter_strength(adapter_scale), self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt or i < first_step:
                    continue
                clip_windows = windows.make_windows(schedule, num_frames, window, overlap, window_offsets[i])
                predicted = predictor(
                    self.unet,
                    scale_clip(self.scheduler, latents, t, device),
                    t,
                    conditioning,
                    clip_windows,
                    windows.blend_weights(clip_windows, num_frames, overlap, schedule),
                    self.guidance_scale,
                    step=i,
                    num_steps=len(timesteps),
                    window_batch=window_batch,
                )
                latents = step_clip(self.scheduler, predicted, t, latents, device, **extra)
                del predicted  # the latents lie in its place

                if callback_on_step_end is not None:
                    known = {
                        "latents": latents,
                        "prompt_embeds": conditioning.text,
                        "negative_prompt_embeds": conditioning.negative_text,
                    }
                    tensors = {name: known[name] for name in callback_on_step_end_tensor_inputs}
                    changed = {**known, **(callback_on_step_end(self, i, t, tensors) or {})}
                    latents = changed["latents"]
                    conditioning.text, conditioning.negative_text = (
                        changed["prompt_embeds"],
                        changed["negative_prompt_embeds"],
                    )
                if i == len(timesteps) - 1 or ((i + 1) > num_warmup_steps and (i + 1) % self.scheduler.order == 0):
                    progress_bar.update()

        # 6. Decode
        frames = latents if output_type == "latent" else self._decode(latents, vae_batch, output_type)
        self.maybe_free_model_hooks()
        return XDynaPipelineOutput(frames=frames) if return_dict else (frames,)

    def _decode(self, latents: Tensor, vae_batch: int, output_type: str) -> Any:
        frames = torch.cat([part.cpu() for part in self.decode_frames(latents, vae_batch)])
        if output_type == "pt":
            return frames[None]
        array = frames.permute(0, 2, 3, 1).numpy()
        return array[None] if output_type == "np" else [self.numpy_to_pil(array)]

    def check_size(self, width: int, height: int) -> None:
        """Raise ValueError, naming the sizes this model takes, for a size it does not."""
        self.sizes.check((width, height))

    def _check_call(
        self,
        size_wh: tuple[int, int],
        num_frames: int,
        window: int,
        overlap: int,
        schedule: str,
        output_type: str,
        generator: torch.Generator | None,
        callback_names: Sequence[str],
    ) -> None:
        self.sizes.check(size_wh)
        if not hasattr(self.scheduler, "add_noise"):
            raise ValueError(
                f"scheduler is {inputs.describe(self.scheduler)}, wanted one of those that AnimateDiff takes"
            )
        longest = self.unet.config.motion_max_seq_length
        if inputs.count(window, "window") > longest:
            raise ValueError(f"window is {window} frames, this model's motion modules take at most {longest}")
        windows.make_windows(schedule, num_frames, window, inputs.count(overlap, "overlap", low=0))
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}, wanted one of {', '.join(OUTPUT_TYPES)}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(f"generator is {inputs.describe(generator)}, wanted one torch.Generator")
        unknown = [name for name in callback_names if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs names {', '.join(unknown)}, wanted some of"
                f" {', '.join(self._callback_tensor_inputs)}"
            )


def _by_frame(frames: Tensor | Iterator[Tensor]) -> Iterator[Tensor]:
    """[1, C, F, h, w] to F times [C, h, w]; what is an iterator already stays as it is."""
    return iter(frames[0].unbind(1)) if isinstance(frames, Tensor) else frames


def _control_scales(pose_scale: Any, face_scale: Any, both: Any) -> tuple[float, float]:
    """(pose, face) strengths from our two arguments or from diffusers' one."""
    scales = inputs.finite(pose_scale, "pose_scale"), inputs.finite(face_scale, "face_scale")
    if both is None:
        return scales
    if scales != (1.0, 1.0):
        raise ValueError("controlnet_conditioning_scale is given as well as pose_scale or face_scale, wanted one form")
    pose, face = inputs.pair(both, "controlnet_conditioning_scale")
    return inputs.finite(pose, "controlnet_conditioning_scale"), inputs.finite(face, "controlnet_conditioning_scale")
