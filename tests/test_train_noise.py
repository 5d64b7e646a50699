"""The noise objective against diffusers' schedulers and against itself; random numbers by sample."""

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler

from xdyna.errors import UserError
from xdyna.train.noise import Objective, normal, sample_generator, sample_generators, sample_seed, uniform

PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def scheduler(**settings: object) -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, **settings
    )


def latents(seed: int, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 4, 3, 5, 6, generator=torch.Generator().manual_seed(seed))


# -- random numbers ----------------------------------------------------------------------------------------------


def test_a_sample_draws_the_same_in_any_batch() -> None:
    together = normal(sample_generators(3, [5, 6, 7]), (2, 3))
    assert torch.equal(together[1:2], normal(sample_generators(3, [6]), (2, 3)))
    assert torch.equal(uniform([sample_generator(3, 7)]), uniform(sample_generators(3, [5, 6, 7]))[2:])


def test_seeds_of_near_samples_streams_and_runs_differ() -> None:
    seeds = {sample_seed(seed, index, stream) for seed in range(8) for index in range(64) for stream in range(4)}
    assert len(seeds) == 8 * 64 * 4
    assert min(seeds) >= 0
    assert max(seeds) < 1 << 63


def test_neighbouring_samples_are_unrelated() -> None:
    drawn = normal(sample_generators(0, range(200)), (100,))
    correlation = torch.corrcoef(drawn)
    assert (correlation - torch.eye(200)).abs().max() < 0.5
    assert drawn.mean().abs() < 0.03
    assert drawn.std() == pytest.approx(1, abs=0.02)


# -- noise and targets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_noising_and_target_are_the_schedulers(prediction: str) -> None:
    base = scheduler()
    objective = Objective(base, prediction=prediction)
    clean, noise, timesteps = latents(1), latents(2), torch.tensor([0, 10, 500, 999])
    noisy = objective.add_noise(clean, noise, timesteps)
    assert torch.allclose(noisy, base.add_noise(clean, noise, timesteps), atol=1e-6)
    if prediction == "v_prediction":
        assert torch.allclose(
            objective.target(clean, noise, timesteps), base.get_velocity(clean, noise, timesteps), atol=1e-6
        )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_gives_the_clean_latents(prediction: str) -> None:
    objective = Objective(scheduler(), prediction=prediction)
    clean, noise, timesteps = latents(1), latents(2), torch.tensor([0, 10, 500, 999])
    noisy = objective.add_noise(clean, noise, timesteps)
    found = objective.to_clean(objective.target(clean, noise, timesteps), noisy, timesteps)
    assert torch.allclose(found, clean, atol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sampling_with_the_objectives_scheduler_undoes_the_noise(prediction: str) -> None:
    """One step of the scheduler that would be saved, with perfect predictions, back to (nearly) clean latents."""
    objective = Objective(scheduler(set_alpha_to_one=True), prediction=prediction)
    clean, noise = latents(1, 1), latents(2, 1)
    objective.scheduler.set_timesteps(1)
    (timestep,) = objective.scheduler.timesteps
    noisy = objective.add_noise(clean, noise, timestep[None])
    predicted = objective.target(clean, noise, timestep[None])
    assert torch.allclose(objective.scheduler.step(predicted, timestep, noisy).prev_sample, clean, atol=1e-3)


def test_the_schedulers_own_prediction_is_taken_unless_another_is_given() -> None:
    base = scheduler(prediction_type="v_prediction")
    assert Objective(base).prediction == "v_prediction"
    assert Objective(base, prediction="sample").scheduler.config.prediction_type == "sample"
    assert base.config.prediction_type == "v_prediction"


def test_zero_snr_leaves_nothing_of_the_signal_at_the_end() -> None:
    plain = Objective(scheduler(), prediction="v_prediction")
    zero = Objective(scheduler(), prediction="v_prediction", zero_snr=True)
    assert plain.alphas_cumprod[-1] > 1e-3
    assert zero.alphas_cumprod[-1] == 0
    assert zero.alphas_cumprod[0] == pytest.approx(float(plain.alphas_cumprod[0]), abs=1e-5)
    noise = latents(2)
    assert torch.equal(zero.add_noise(latents(1), noise, torch.full((4,), 999)), noise)
    assert zero.scheduler.config.rescale_betas_zero_snr
    assert zero.scheduler.config.timestep_spacing == "trailing"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "epsilon", "zero_snr": True}, "set prediction=v_prediction or prediction=sample"),
        ({"prediction": "velocity"}, "prediction=velocity: not known; known: epsilon, sample, v_prediction"),
    ],
)
def test_what_cannot_be_learnt_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Objective(scheduler(), **settings)  # type: ignore[arg-type]


def test_scheduler_that_cannot_be_rescaled_is_refused() -> None:
    with pytest.raises(UserError, match="zero_snr: PNDMScheduler cannot rescale"):
        Objective(PNDMScheduler(), prediction="v_prediction", zero_snr=True)


# -- weights and timesteps ---------------------------------------------------------------------------------------


def test_weights_are_one_unless_asked_for() -> None:
    assert torch.equal(Objective(scheduler()).weight(torch.tensor([0, 999])), torch.ones(2))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_clean_latents_error_alike(prediction: str) -> None:
    """Whatever is predicted, an error of the clean latents costs min(snr, cap) at its timestep."""
    objective = Objective(scheduler(), prediction=prediction, min_snr=5.0)
    timesteps = torch.tensor([1, 50, 300, 700, 990])
    clean, noise = latents(1, 5).double(), latents(2, 5).double()
    noisy = objective.add_noise(clean, noise, timesteps)
    target = objective.target(clean, noise, timesteps)
    predicted = target + 0.01 * latents(3, 5)
    loss = objective.weight(timesteps) * ((predicted - target) ** 2).mean((1, 2, 3, 4))
    error = ((objective.to_clean(predicted, noisy, timesteps) - clean) ** 2).mean((1, 2, 3, 4))
    power = objective.alphas_cumprod[timesteps].double()
    expected = torch.clamp(power / (1 - power), max=5.0)
    assert torch.allclose(loss / error, expected, rtol=1e-3)


def test_noise_offset_shifts_whole_channels_of_a_clip() -> None:
    sources = sample_generators(0, range(400))
    drawn = Objective(scheduler(), noise_offset=0.5).noise(sources, (2, 4, 4, 4))
    assert drawn.shape == (400, 2, 4, 4, 4)
    means = drawn.mean((2, 3, 4))
    assert means.std() == pytest.approx((0.25 + 1 / 64) ** 0.5, rel=0.1)
    plain = Objective(scheduler()).noise(sample_generators(0, range(400)), (2, 4, 4, 4))
    assert plain.mean((2, 3, 4)).std() == pytest.approx(1 / 8, rel=0.1)
    spread = (drawn - plain).var((2, 3, 4))  # the offset is all that differs
    assert spread.max() < 1e-10


def test_timesteps_reach_both_ends_and_can_lean_to_noise() -> None:
    sources = sample_generators(0, range(2000))
    drawn = Objective(scheduler(num_train_timesteps=50)).timesteps(sources)
    assert (drawn.min(), drawn.max()) == (0, 49)
    assert drawn.float().mean() == pytest.approx(24.5, abs=1.2)
    early = Objective(scheduler(num_train_timesteps=50), early=3.0).timesteps(sample_generators(0, range(2000)))
    assert early.float().mean() == pytest.approx(49 * 3 / 4, abs=1.2)
