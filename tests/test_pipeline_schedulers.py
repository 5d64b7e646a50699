"""The pipeline under every scheduler that AnimateDiff pipelines take, and under every kind of prediction."""

import inspect
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from test_pipeline import LATENT_SHAPE, recorded, run, seeded
from tiny_models import TINY_SCHEDULER, tiny_pipeline
from torch import Tensor, nn

from xdyna import XDynaPipeline

SCHEDULERS = [
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
]
#: Schedulers that add new noise in every step.
NOISY = [DDPMScheduler, EulerAncestralDiscreteScheduler, KDPM2AncestralDiscreteScheduler, LCMScheduler]
#: Schedulers whose sigmas need the model's input scaled.
SCALING = [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler, LMSDiscreteScheduler]
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' sigmas under numpy 2

BETAS = {key: TINY_SCHEDULER[key] for key in ("beta_start", "beta_end", "beta_schedule")}
ZERO_SNR = {**BETAS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}


def build(kind: Any, **settings: Any) -> Any:
    """A scheduler with the official betas that does not clip what it predicts to -1..1, as latents are not pixels."""
    if "clip_sample" in inspect.signature(kind).parameters:
        settings = {"clip_sample": False, **settings}
    return kind(**BETAS, **settings)


@pytest.fixture(scope="module")
def pipeline() -> XDynaPipeline:
    return tiny_pipeline(face=False)


class Oracle(nn.Module):
    """A perfect model: it knows the clip and predicts exactly what the scheduler asks for.

    Its input is the variance-preserving mixture sqrt(a) x0 + sqrt(1 - a) eps of the timestep's alpha, as a model's
    always is after `scale_model_input`. It notes the eps that each call implies: on the straight path from noise to
    clip that is always the noise of the start, and any mistake in scaling or in timesteps shows.
    """

    dtype = torch.float32

    def __init__(self, clean: Tensor, alphas: Tensor, prediction: str) -> None:
        super().__init__()
        self.clean, self.alphas, self.prediction = clean, alphas.double(), prediction
        self.implied: list[Tensor] = []

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Any:
        alpha = self._alpha(float(timestep))
        x = sample[:, :, 1:].double()
        clean = self.clean.double().expand_as(x)
        eps = (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        self.implied.append(eps[:1].float())
        outputs = {
            "sample": clean,
            "epsilon": eps,
            "v_prediction": alpha.sqrt() * eps - (1 - alpha).sqrt() * clean,
        }
        out = outputs[self.prediction].float()
        return type("Output", (), {"sample": torch.cat([sample[:, :, :1], out], dim=2)})

    def _alpha(self, timestep: float) -> Tensor:
        """Between whole timesteps, sigmas (all but KDPM2's: logarithms of sigmas) are interpolated in a line."""
        below, part = int(timestep), timestep - int(timestep)
        above = min(below + 1, len(self.alphas) - 1)
        sigmas = ((1 - self.alphas[[below, above]]) / self.alphas[[below, above]]).sqrt()
        return 1 / (1 + ((1 - part) * sigmas[0] + part * sigmas[1]) ** 2) if part else self.alphas[below]


def with_oracle(
    pipeline: XDynaPipeline, monkeypatch: pytest.MonkeyPatch, scheduler: Any, prediction: str
) -> tuple[Tensor, Tensor, float]:
    """(what the pipeline makes, the clip that its model knows, farthest that a call strayed from the first noise)."""
    shape = (1, LATENT_SHAPE[0], 5, *LATENT_SHAPE[1:])
    clean, noise = torch.randn(shape, generator=seeded(9)), torch.randn(shape, generator=seeded(10))
    oracle = Oracle(clean, scheduler.alphas_cumprod, prediction)
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    monkeypatch.setattr(pipeline.unet, "forward", oracle.forward)
    scheduler.set_timesteps(8)
    start = scheduler.add_noise(clean, noise, scheduler.timesteps[:1])
    got = run(pipeline, face=False, num_inference_steps=8, latents=start)
    return got, clean, max(float((eps - noise).abs().max()) for eps in oracle.implied)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_every_scheduler_reaches_what_a_perfect_model_knows(
    kind: type, pipeline: XDynaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    got, clean, strayed = with_oracle(pipeline, monkeypatch, build(kind), "epsilon")
    # PNDM and DEIS end at the first timestep's noise, sigma 0.03; the others at none.
    ends_noisy = kind in (PNDMScheduler, DEISMultistepScheduler)
    assert (got - clean).abs().max() < (0.15 if ends_noisy else 1e-5)
    if kind not in NOISY:
        assert strayed < (0.1 if kind is PNDMScheduler else 2e-3)  # PNDM's own formula is only nearly exact


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "kind", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
)
def test_every_prediction_type(
    kind: type, prediction: str, pipeline: XDynaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    got, clean, strayed = with_oracle(pipeline, monkeypatch, build(kind, prediction_type=prediction), prediction)
    torch.testing.assert_close(got, clean, rtol=0, atol=1e-5)
    assert strayed < 1e-3


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr(prediction: str, pipeline: XDynaPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step sees pure noise."""
    scheduler = DDIMScheduler(**ZERO_SNR, prediction_type=prediction)
    got, clean, strayed = with_oracle(pipeline, monkeypatch, scheduler, prediction)
    assert scheduler.timesteps[0] == 999
    assert scheduler.alphas_cumprod[999] == 0
    torch.testing.assert_close(got, clean, rtol=0, atol=1e-5)
    assert strayed < 1e-3


@pytest.mark.parametrize("kind", [*SCALING, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_the_reference_is_never_scaled(kind: type, pipeline: XDynaPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Driving frames reach the networks scaled, the reference as the VAE made it."""
    scheduler = build(kind, timestep_spacing="leading", steps_offset=1)
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    reference = torch.randn(1, LATENT_SHAPE[0], 1, *LATENT_SHAPE[1:], generator=seeded(4))
    start = 14 * torch.randn(1, LATENT_SHAPE[0], 5, *LATENT_SHAPE[1:], generator=seeded(5))
    with recorded(pipeline.unet) as unet, recorded(pipeline.pose_controlnet) as pose:
        run(pipeline, face=False, reference_latents=reference, latents=start)
    assert unet
    for call in unet:
        assert torch.equal(call["0"][:, :, :1], reference.expand(2, -1, -1, -1, -1))
    fresh = build(kind, timestep_spacing="leading", steps_offset=1)
    fresh.set_timesteps(2)
    scaled = fresh.scale_model_input(start, fresh.timesteps[0])
    assert torch.equal(unet[0]["0"][:1, :, 1:], scaled)
    assert torch.equal(pose[0]["0"], scaled[0].transpose(0, 1))
    assert torch.equal(scaled, start) == (kind not in SCALING)


@pytest.mark.parametrize(
    "scheduler",
    [
        EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
        DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing", solver_order=1),
    ],
    ids=["euler", "dpm-solver-1"],
)
def test_first_order_schedulers_walk_the_path_of_ddim(
    scheduler: Any, pipeline: XDynaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDIM is Euler's method in another scale: same model, same draws, same timesteps, same clip."""
    monkeypatch.setattr(pipeline, "scheduler", DDIMScheduler(**{**TINY_SCHEDULER, "timestep_spacing": "trailing"}))
    wanted = run(pipeline, face=False, num_inference_steps=4)
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    got = run(pipeline, face=False, num_inference_steps=4)
    assert wanted.std() > 1
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", [EulerAncestralDiscreteScheduler, DDPMScheduler, LCMScheduler])
def test_noisy_schedulers_draw_from_the_generator(
    kind: type, pipeline: XDynaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "scheduler", build(kind))
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(runs))
        runs.append(run(pipeline, face=False, seed=seed, num_inference_steps=3))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_eta_reaches_ddim(pipeline: XDynaPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "scheduler", DDIMScheduler(**TINY_SCHEDULER))
    assert not torch.equal(run(pipeline, face=False), run(pipeline, face=False, eta=1.0))


def test_offsets_are_drawn_for_every_timestep_of_a_second_order_scheduler(
    pipeline: XDynaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "scheduler", HeunDiscreteScheduler(**BETAS))
    assert torch.isfinite(run(pipeline, 9, face=False, num_inference_steps=3, window=4, overlap=2)).all()
    assert pipeline.num_timesteps == 5
    with pytest.raises(ValueError, match="3 window_offsets, wanted one for each of 5 timesteps"):
        run(pipeline, 9, face=False, num_inference_steps=3, window_offsets=[0, 1, 2])
