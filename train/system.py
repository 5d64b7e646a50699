"""The whole model as one module whose forward is a training step's loss: what every recipe on clips shares."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from xdyna.configs.clips import ClipConfig
from xdyna.controlnets.residuals import Residuals, control_residuals, sum_residuals
from xdyna.controlnets.s_face import SFaceControlNet
from xdyna.data.cache import TensorCache
from xdyna.latents import downgrade_input
from xdyna.train.noise import Objective, sample_generators, uniform
from xdyna.train.parts import Parts, encode, thaw, without_motion

if TYPE_CHECKING:
    from xdyna.data.source import Batch


@dataclass(frozen=True, eq=False)
class Draws:
    """What is random in a batch of B clips of F driving frames; row i depends on the seed and sample i alone.

    Attributes:
        reference: int64 [B], which of the 1+F frames is the reference.
        dropped: bool [B], the reference is taken away.
        from_reference: bool [B], the noise also explains the way from the reference that the pipeline starts from.
        timesteps: int64 [B].
        noise: [B, C, F, h, w].
        mask: bool [B, C, F, h, w]; where `from_reference`, true keeps and false takes the blur.
    """

    reference: Tensor
    dropped: Tensor
    from_reference: Tensor
    timesteps: Tensor
    noise: Tensor
    mask: Tensor


class ClipSystem(nn.Module):
    """Loss of a batch of clips.

    Args:
        parts: the model; the named parts are thawed, all others stay frozen.
        cfg: settings of a recipe.
        trains: what trains.
        face: the face ControlNet runs too; batches then need face maps.
        motion: motion modules run; without them frames come from random moments, and any of them is the reference.

    Attributes:
        saved: the modules that a checkpoint holds, by name.
    """

    def __init__(
        self, parts: Parts, cfg: ClipConfig, trains: tuple[str, ...], *, face: bool = False, motion: bool = True
    ) -> None:
        super().__init__()
        self.cfg, self.trains, self.face, self.motion = cfg, trains, face, motion
        self.parts = parts
        self.saved = thaw(parts, trains)
        runs = parts.modules()
        for adapter in ("dynamics_adapter", "image_prompt"):  # their layers are the UNet's children
            runs.pop(adapter, None)
        if not face:
            runs.pop("face_controlnet")
        self.running = nn.ModuleDict(runs)
        self.resampler = parts.image_prompt.resampler if parts.image_prompt is not None else None
        self.objective = Objective(
            parts.scheduler,
            prediction=cfg.prediction,
            zero_snr=cfg.zero_snr,
            min_snr=cfg.min_snr,
            noise_offset=cfg.noise_offset,
            early=cfg.early,
            terminal_signal=cfg.terminal_signal,
        )
        self._encoded: tuple[Any, Tensor] | None = None
        self.latents = self._cache("latents", parts.vae)
        self.embeddings = self._cache("embeddings", parts.image_encoder)

    def _cache(self, name: str, model: nn.Module | None) -> TensorCache | None:
        """Where the results of a frozen model are kept, if the recipe wants that."""
        if self.cfg.cache is None or model is None:
            return None
        return TensorCache(self.cfg.cache / name, model, self.cfg.precision, used=not self.cfg.dry_run)

    @property
    def device(self) -> torch.device:
        return self.parts.unet.device

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean loss of a batch: squared error of what is predicted for the driving frames, the figure weighted.

        Raises:
            ValueError: face maps are wanted and the batch has none.
        """
        if self.face and batch.face_maps is None:
            raise ValueError("this system reads face maps, the batch has none")
        latents = self._encode(batch)  # [B, 1+F, C, h, w]
        draws = self.draw(batch.indices, latents.shape)
        if not self.motion:
            order = (torch.arange(latents.shape[1]) + draws.reference[:, None]) % latents.shape[1]  # [B, 1+F]
            batch, latents = _reordered(batch, order), _take(latents, order)
        reference, clean = latents.transpose(1, 2).tensor_split([1], dim=2)  # [B, C, 1, h, w], [B, C, F, h, w]
        reference = torch.where(_wide(draws.dropped), torch.zeros_like(reference), reference)
        noise = self._explaining_noise(reference, clean, draws)
        noisy = self.objective.add_noise(clean, noise, draws.timesteps)
        tokens = self.image_tokens(batch.frames[:, 0], draws.dropped)
        predicted = self.predict(reference, noisy, draws.timesteps, batch, tokens)
        target = self.objective.target(clean, noise, draws.timesteps)
        cover = torch.as_tensor(batch.masks[:, 1:], device=self.device).float() / 255  # [B, F, H, W]
        height, width = clean.shape[-2:]
        weight = 1 + self.cfg.figure * adaptive_avg_pool2d(cover, (height, width))[:, None]
        losses = (weight * (predicted.float() - target.float()) ** 2).mean((1, 2, 3, 4))  # [B]
        return {"loss": (self.objective.weight(draws.timesteps) * losses).mean()}

    def draw(self, indices: NDArray[Any], shape: torch.Size) -> Draws:
        """The random numbers of samples whose latents have the shape [B, 1+F, C, h, w]."""
        cfg = self.cfg
        sources = sample_generators(cfg.seed, indices)
        frames, (channels, height, width) = shape[1], shape[2:]
        drawn = (channels, 1 if cfg.shared_noise else frames - 1, height, width)
        whole = (len(sources), channels, frames - 1, height, width)
        reference = (uniform(sources) * frames).long()
        dropped = uniform(sources) < cfg.reference_dropout
        from_reference = (uniform(sources) < cfg.start) & ~dropped
        timesteps = self.objective.timesteps(sources)
        noise = self.objective.noise(sources, drawn).expand(whole)
        mask = (uniform(sources, drawn) >= 1 - cfg.start_keep).expand(whole)
        to = self.device
        return Draws(reference, dropped.to(to), from_reference.to(to), timesteps.to(to), noise.to(to), mask.to(to))

    def predict(
        self, reference: Tensor, noisy: Tensor, timesteps: Tensor, batch: Batch, image_tokens: Tensor | None
    ) -> Tensor:
        """What the model says of the driving frames.

        Args:
            reference: clean latents [B, C, 1, h, w].
            noisy: [B, C, F, h, w].
            timesteps: [B], or one for all, shape [].
            batch: its maps are used; those of the reference are not.
            image_tokens: [B, n, D]; None without an image prompt.

        Returns:
            [B, C, F, h, w].
        """
        parts = self.parts
        text = parts.stored_prompt(len(noisy))
        maps = torch.as_tensor(batch.pose_maps[:, 1:], device=self.device)
        residuals = [control_residuals(parts.pose_controlnet, noisy, timesteps, text, conditions(maps))]
        if self.face:
            faces = face_condition(torch.as_tensor(batch.face_maps[:, 1:], device=self.device))  # type: ignore[index]
            residuals.append(control_residuals(parts.face_controlnet, noisy, timesteps, text, faces))
        extra: Residuals = sum_residuals(residuals).with_reference()
        context = text if image_tokens is None else torch.cat([text, image_tokens.to(text)], 1)
        with nullcontext() if self.motion else without_motion(parts.unet):
            clips = torch.cat([reference, noisy], 2)
            return parts.unet(clips, timesteps, context, extra.down, extra.mid).sample[:, :, 1:]

    def _encode(self, batch: Batch) -> Tensor:
        """Latents [B, 1+F, C, h, w] of all frames; steps that see the same clips again encode them once."""
        if self._encoded is None or self._encoded[0] is not batch.frames:
            if self.latents is None:
                latents = self._encode_pictures(batch.frames)
            else:
                latents = self.latents.fetch([*np.concatenate(batch.frames)], self._encode_picture).to(self.device)
            self._encoded = (batch.frames, latents.unflatten(0, batch.frames.shape[:2]))
        return self._encoded[1]

    def _encode_pictures(self, pictures: NDArray[Any]) -> Tensor:
        """uint8 [.., H, W, 3] -> [N, C, h, w]."""
        return encode(self.parts.vae, to_unit(torch.as_tensor(pictures, device=self.device)))

    def _encode_picture(self, picture: NDArray[Any]) -> Tensor:
        return self._encode_pictures(picture[None])[0]

    def _explaining_noise(self, reference: Tensor, clean: Tensor, draws: Draws) -> Tensor:
        """The noise [B, C, F, h, w] by which the noisy latents differ from the clean ones.

        A pipeline that sets out from the downgraded reference sees more in its first latents than the noise that was
        drawn: the difference between reference and truth, through the schedule's last timestep, is part of what it has
        to predict away, and DDIM carries it along to all later timesteps.
        """
        begin = downgrade_input(reference, draws.mask)
        power = self.objective.alphas_cumprod[-1]
        shifted = draws.noise + (power / (1 - power)).sqrt() * (begin - clean)
        return torch.where(_wide(draws.from_reference), shifted, draws.noise)

    def image_tokens(self, references: NDArray[Any], dropped: Tensor | None = None) -> Tensor | None:
        """[B, n, D] of pictures uint8 [B, H, W, 3]; those that are dropped (bool [B]) count as no picture.

        None for a model without an image prompt.
        """
        if self.parts.image_prompt is None:
            return None
        pixels = self.parts.feature_extractor(images=list(references), return_tensors="pt").pixel_values
        pixels = pixels.to(self.device)
        if dropped is not None:
            pixels = pixels * ~dropped[:, None, None, None]
        trains = any(p.requires_grad for p in self.parts.image_encoder.parameters())
        if self.embeddings is None or trains:
            return self.parts.image_prompt(self._embed(pixels))
        hidden = self.embeddings.fetch([*pixels.cpu().numpy()], lambda one: self._embed(torch.as_tensor(one)[None])[0])
        return self.parts.image_prompt(hidden.to(self.device))

    def _embed(self, pixels: Tensor) -> Tensor:
        """What the image prompt reads of pictures as the encoder takes them, [N, 3, side, side]."""
        return self.parts.image_encoder(pixels.to(self.device), output_hidden_states=True).hidden_states[-2]


def to_unit(frames: Any) -> Tensor:
    """uint8 [..., H, W, 3] -> float [N, 3, H, W] in -1..1, all leading axes folded into N."""
    flat = torch.as_tensor(frames).flatten(0, -4)
    return flat.permute(0, 3, 1, 2).float() / 127.5 - 1


def conditions(maps: Any) -> Tensor:
    """uint8 [B, F, H, W, c] -> [B, c, F, H, W], each clip stretched to 0..1 as the pipeline does."""
    values = torch.as_tensor(maps).permute(0, 4, 1, 2, 3).float()
    low, high = values.amin((1, 2, 3, 4), keepdim=True), values.amax((1, 2, 3, 4), keepdim=True)
    return (values - low) / (high - low).clamp(min=1)


def face_condition(maps: Any) -> Tensor:
    """uint8 [B, F, H, W, 6] -> [B, 6, F, H, W]; local and global maps are stretched each on its own."""
    maps = torch.as_tensor(maps)
    return SFaceControlNet.condition(conditions(maps[..., :3]), conditions(maps[..., 3:]))


def _wide(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1, 1]."""
    return values[:, None, None, None, None]


def _take(values: Tensor, order: Tensor) -> Tensor:
    """Frames [B, F, ..] of each clip in the order [B, F]."""
    return torch.stack([clip[index] for clip, index in zip(values, order, strict=True)])


def _reordered(batch: Batch, order: Tensor) -> Batch:
    """The same clips, their frames in the order [B, 1+F]."""

    def take(values: NDArray[Any]) -> NDArray[Any]:
        rows = torch.arange(len(order))[:, None].numpy()
        return values[rows, order.numpy()]

    faces = None if batch.face_maps is None else take(batch.face_maps)
    return replace(
        batch,
        frames=take(batch.frames),
        masks=take(batch.masks),
        pose_maps=take(batch.pose_maps),
        face_maps=faces,
    )
