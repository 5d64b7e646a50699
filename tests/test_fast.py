"""Approximations: what each leaves out, that it is near, that it is refused where it does nothing, and presets."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from animate_inputs import make_driver, make_photo
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from tiny_models import tiny_inputs, tiny_pipeline
from torch import Tensor, nn

from xdyna import XDynaPipeline
from xdyna.attention import spatial_sites
from xdyna.cli import main
from xdyna.configs import load_config
from xdyna.configs.animate import AnimateConfig
from xdyna.configs.fast import with_preset
from xdyna.errors import UserError
from xdyna.infer.engine.deep_cache import deep_output, most_depth, run_outermost
from xdyna.infer.engine.fast import FastPredictor
from xdyna.infer.engine.long import anchored
from xdyna.infer.engine.predict import ExactPredictor
from xdyna.infer.engine.presets import build_predictor, check_fast
from xdyna.infer.engine.token_merge import match, merged_tokens, merging_sites
from xdyna.infer.load import build_scheduler

MODELS: dict[str, dict[str, Any]] = {
    "pooled": {},
    "per frame": {"pool_group_norm": False},
    "fixed reference": {"pool_group_norm": False, "reference_timestep": "zero"},
    "no adapter": {"pool_group_norm": False, "adapter": False},
    "no attention above": {
        "down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion"),
        "up_block_types": ("CrossAttnUpBlockMotion", "UpBlockMotion"),
    },
}


@pytest.fixture(scope="module")
def pipelines() -> dict[str, XDynaPipeline]:
    return {name: tiny_pipeline(text=True, **settings) for name, settings in MODELS.items()}


def run(pipeline: XDynaPipeline, predictor: Any, num_frames: int = 6, **settings: Any) -> Tensor:
    """Final latents of a short call."""
    defaults = {"num_inference_steps": 4, "output_type": "latent", "window": 4, "overlap": 2}
    generator = torch.Generator().manual_seed(0)
    latents: Tensor = pipeline(
        **{**tiny_inputs(num_frames), **defaults, **settings}, generator=generator, predictor=predictor
    ).frames
    return latents


#: Guidance between halves that differ, and windows that move from step to step.
GUIDED: dict[str, Any] = {"window_batch": 2, "guidance_scale": 1.5, "schedule": "open", "negative_prompt": "a"}


@pytest.fixture(scope="module")
def exact(pipelines: dict[str, XDynaPipeline]) -> Tensor:
    return run(pipelines["pooled"], ExactPredictor(), **GUIDED)


def off(a: Tensor, b: Tensor) -> float:
    """Error of `a` against `b`, as a share of its spread."""
    return float((a - b).pow(2).mean().sqrt() / b.std())


def test_without_switches_it_is_exact(pipelines: dict[str, XDynaPipeline], exact: Tensor) -> None:
    assert torch.equal(exact, run(pipelines["pooled"], FastPredictor(), **GUIDED))


@pytest.mark.parametrize(
    "switches",
    [
        {"reuse_every": 2},
        {"reuse_every": 2, "reuse_depth": 2},
        {"residuals_every": 2},
        {"guidance_from": 0.25, "guidance_to": 0.75},
        {"merge_tokens": 0.25},
        {"reuse_every": 2, "residuals_every": 4, "guidance_to": 0.6, "merge_tokens": 0.25},
    ],
    ids=["features", "two layers", "residuals", "guidance", "tokens", "all"],
)
def test_each_switch_changes_a_little(
    pipelines: dict[str, XDynaPipeline], exact: Tensor, switches: dict[str, Any]
) -> None:
    predictor = FastPredictor(**switches)
    fast = run(pipelines["pooled"], predictor, **GUIDED)
    assert 1e-6 < off(fast, exact) < 0.5
    assert torch.equal(fast, run(pipelines["pooled"], predictor, **GUIDED))  # nothing is left of the job before


#: One for each switch of the config that changes what is denoised. What decodes, previews and 8-bit weights are put
#: together with the others in their own tests.
SWITCHES: dict[str, dict[str, Any]] = {
    "solver": {"scheduler": "dpm++"},
    "spacing": {"fast": {"spacing": "trailing"}},
    "guidance": {"fast": {"guidance_to": 0.5}},
    "features": {"fast": {"reuse_every": 2}},
    "residuals": {"fast": {"residuals_every": 2}},
    "tokens": {"fast": {"merge_tokens": 0.25}},
    "reference": {"near_reference": True},
    "anchor": {"anchor": 0.5},
}


@pytest.mark.slow
def test_every_pair_of_switches_goes_together(pipelines: dict[str, XDynaPipeline]) -> None:
    """Either changes what the other makes: none is lost beside another, and none is refused."""
    pipeline = XDynaPipeline(**pipelines["pooled"].components)
    pipeline.set_progress_bar_config(disable=True)
    own = pipelines["pooled"].scheduler

    def made(*names: str) -> Tensor:
        values: dict[str, Any] = {"steps": 3, "guidance": 1.5, "size": "32x48", "window": 2, "overlap": 1}
        for name in names:
            fast = {**values.get("fast", {}), **SWITCHES[name].get("fast", {})}
            values |= {**SWITCHES[name], "fast": fast}
        config = AnimateConfig.model_validate(values)
        pipeline.scheduler = build_scheduler(config.scheduler, own, config.fast.spacing)
        check_fast(pipeline, config)
        predictor = anchored(build_predictor(config), pipeline.scheduler, config)
        call = {"num_inference_steps": 3, "guidance_scale": 1.5, "negative_prompt": "a", "window": 2, "overlap": 1}
        return run(pipeline, predictor, 3, **call, face_maps=None)

    alone = {name: made(name) for name in SWITCHES}
    for one, other in combinations(SWITCHES, 2):
        both = made(one, other)
        assert both.isfinite().all(), (one, other)
        assert off(both, alone[one]) > 1e-6, f"{other} does nothing beside {one}"
        assert off(both, alone[other]) > 1e-6, f"{one} does nothing beside {other}"


@pytest.mark.parametrize("model", ["fixed reference", "no adapter", "no attention above"])
def test_switches_go_together_on_every_model(pipelines: dict[str, XDynaPipeline], model: str) -> None:
    switches = {"reuse_every": 2, "reuse_depth": 2, "residuals_every": 4, "guidance_to": 0.6, "merge_tokens": 0.25}
    results = [
        run(pipelines[model], predictor, **GUIDED) for predictor in (ExactPredictor(), FastPredictor(**switches))
    ]
    assert 1e-6 < off(results[1], results[0]) < 0.5


@pytest.mark.parametrize(
    ("model", "depth"), [("pooled", 2), ("per frame", 1), ("fixed reference", 2), ("no attention above", 1)]
)
def test_the_outermost_layers_on_fresh_features_are_the_whole(
    pipelines: dict[str, XDynaPipeline], model: str, depth: int
) -> None:
    """Reuse within the very step changes nothing: the two ways of running the UNet agree."""
    pipeline = pipelines[model]

    class Twice(FastPredictor):
        worst = 0.0

        def _run(self, unet: Any, rows: Any, timestep: Any, context: Any, group: Any, added: Any, keys: Any) -> Tensor:
            with deep_output(unet, depth) as found:
                whole = ExactPredictor._run(self, unet, rows, timestep, context, group, added, keys)
            down = added.down[:depth]
            outer = run_outermost(unet, rows, timestep, context, found[0], depth, down, keys[0])
            self.worst = max(self.worst, float((outer - whole).abs().max()))
            return whole

    predictor = Twice()
    run(pipeline, predictor, num_inference_steps=2, window_batch=2)
    assert most_depth(pipeline.unet) == 2
    assert predictor.worst < 1e-5


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """Rows that a module is called with, call by call."""
    rows: list[int] = []
    handle = module.register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()


def test_steps_in_between_leave_the_deep_layers_out(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline = pipelines["pooled"]
    net = pipeline.pose_controlnet
    with counted(pipeline.unet.mid_block.resnets[0]) as deep, counted(net.controlnet_mid_block) as residuals:
        run(pipeline, FastPredictor(reuse_every=2), schedule="grid")
    assert len(deep) == 2 * 2  # two of four steps, two windows
    assert sum(residuals) == 2 * 6  # in the others the ControlNets' first convolution is enough
    with counted(pipeline.unet.mid_block.resnets[0]) as deep:
        run(pipeline, FastPredictor(reuse_every=2, keep_bytes=0), schedule="grid")
    assert len(deep) == 4 * 2  # nothing may be kept, so nothing is left out


def test_features_that_do_not_fit_are_computed(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline = pipelines["per frame"]
    one = 2 * 4 * 32 * 12 * 8 * 4  # bytes of one window: two halves, four frames, 32 channels, float32
    with counted(pipeline.unet.mid_block.resnets[0]) as deep:
        some = run(pipeline, FastPredictor(reuse_every=2, keep_bytes=3 * one // 2), schedule="grid")
    assert [rows for rows in deep if rows == 8] == [8] * (2 * 2 + 2 * 1)
    assert off(some, run(pipeline, FastPredictor(reuse_every=2), schedule="grid")) < 0.5
    near = FastPredictor(near_reference=True, reuse_every=2, keep_bytes=3 * one // 2)
    assert torch.isfinite(run(pipelines["pooled"], near, schedule="grid")).all()


def test_residuals_are_kept_by_frame(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline = pipelines["pooled"]
    with counted(pipeline.pose_controlnet.controlnet_mid_block) as residuals:
        run(pipeline, FastPredictor(residuals_every=2), schedule="open", num_inference_steps=3)
    assert sum(residuals) == 2 * 6
    with counted(pipeline.pose_controlnet.controlnet_mid_block) as residuals:
        run(pipeline, FastPredictor(residuals_every=3), num_inference_steps=3, control_guidance_end=(0.7, 1.0))
    assert sum(residuals) == 6  # off in the last step, where those of the face alone are computed anew


def test_guidance_outside_its_interval_runs_one_half(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline = pipelines["fixed reference"]
    with counted(pipeline.unet.conv_out) as rows:
        run(pipeline, FastPredictor(guidance_from=0.25, guidance_to=0.75), num_frames=4)
    assert [r for r in rows if r > 2] == [4, 8, 8, 4]


def test_a_job_can_be_resumed_only_where_nothing_is_taken_over() -> None:
    assert [FastPredictor(reuse_every=2, residuals_every=3).starts_afresh(step) for step in range(7)] == [
        True, False, False, False, False, False, True,
    ]  # fmt: skip
    assert ExactPredictor().starts_afresh(3)


def test_tokens_merge_with_those_most_like_them_and_come_back() -> None:
    tokens = torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(0))
    tokens[:, 1] = tokens[:, 0]  # a pair, in the cell whose first token is kept
    merge, unmerge = match(tokens, 1 / 24, (6, 4))
    assert merge(tokens).shape == (2, 23, 8)
    assert torch.equal(unmerge(merge(tokens)), tokens)
    merge, unmerge = match(tokens, 0.75, (6, 4))
    assert merge(tokens).shape == (2, 6, 8)
    means = merge(torch.ones(2, 24, 8))
    assert torch.allclose(means, torch.ones_like(means))
    with pytest.raises(ValueError, match="wanted 6 x 5"):
        match(tokens, 0.5, (6, 5))


def test_merging_takes_the_finest_sites_and_puts_their_processors_back(pipelines: dict[str, XDynaPipeline]) -> None:
    unet = pipelines["pooled"].unet
    before = {name: attn.processor for name, attn in spatial_sites(unet, "attn1").items()}
    with merged_tokens(unet, 0.5, (12, 8)):
        assert [p for p in before if spatial_sites(unet, "attn1")[p].processor is not before[p]] == [
            *merging_sites(unet)[0]
        ]
    assert all(attn.processor is before[name] for name, attn in spatial_sites(unet, "attn1").items())
    assert merging_sites(pipelines["no attention above"].unet)[1] == 1


# --- settings ---------------------------------------------------------------------------------------------------------


def resolved(model: str, **values: Any) -> tuple[AnimateConfig, list[str]]:
    own = load_config(AnimateConfig, model)
    config, notes = with_preset(load_config(AnimateConfig, "infer/auto", values=values), own)
    return config.with_model_defaults(own), notes


def test_a_preset_lies_between_the_model_and_the_user() -> None:
    balanced, notes = resolved("infer/x-dyna", preset="balanced")
    assert (balanced.steps, balanced.scheduler, balanced.guidance) == (12, "dpm++", 7.5)
    assert balanced.fast.residuals_every > 1
    assert not notes
    own, _ = resolved("infer/x-dyna", preset="balanced", steps=20, scheduler="unipc", fast={"residuals_every": 1})
    assert (own.steps, own.scheduler, own.fast.residuals_every) == (20, "unipc", 1)
    assert own.fast.guidance_to == balanced.fast.guidance_to
    exact, _ = resolved("infer/x-dyna", preset="exact")
    assert type(build_predictor(exact)) is ExactPredictor
    assert type(build_predictor(resolved("infer/x-dyna", preset="fast")[0])) is FastPredictor


def test_a_model_of_one_step_keeps_it() -> None:
    for preset in ("balanced", "fast", "turbo"):
        config, notes = resolved("infer/tiny", preset=preset)
        assert (config.steps, config.scheduler) == (1, None)
        assert "keeps this model's own one step" in notes[0]
        assert type(build_predictor(config)) is ExactPredictor


def test_turbo_takes_a_lora_for_distilled_and_says_so() -> None:
    config, notes = resolved("infer/x-dyna", preset="turbo", lora="lcm.safetensors")
    assert (config.steps, config.scheduler, config.guidance) == (4, "lcm", 1.0)
    assert "distilled" in notes[0]
    assert resolved("infer/x-dyna", preset="turbo")[0].scheduler == "dpm++"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1, "fast": {"reuse_every": 2}}, "reuse_every: got 2, but one step"),
        ({"steps": 1, "fast": {"residuals_every": 3}}, "residuals_every: got 3, but one step"),
        ({"fast": {"reuse_depth": 2}}, "wanted --set fast.reuse_every"),
        ({"fast": {"reuse_every": 2, "reuse_depth": 3}}, "outermost level has 2 layers"),
        ({"guidance": 1.0, "fast": {"guidance_to": 0.5}}, "guidance is off"),
        ({"steps": 4, "fast": {"guidance_to": 0.9}}, "0 to 0.9, in which all of 4 steps lie"),
        ({"steps": 4, "fast": {"guidance_from": 0.8}}, "0.8 to 1, in which none of 4 steps lies"),
        ({"size": "16x16", "fast": {"merge_tokens": 0.05}}, "less than one of a frame's 16 tokens"),
        ({"pose_scale": 0.0, "face": False, "fast": {"residuals_every": 2}}, "no ControlNet runs"),
        ({"fast": {"keep_mb": 100}}, "nothing is kept from step to step"),
        ({"adapter_scale": 0.0, "near_reference": True}, "the reference is not read"),
    ],
)
def test_a_switch_that_does_nothing_is_refused(
    pipelines: dict[str, XDynaPipeline], values: dict[str, Any], message: str
) -> None:
    config, _ = resolved("infer/x-dyna", **values)
    with pytest.raises(UserError, match=message):
        check_fast(pipelines["pooled"], config)


def test_without_controlnets_a_preset_keeps_none_of_their_residuals(pipelines: dict[str, XDynaPipeline]) -> None:
    config, _ = resolved("infer/x-dyna", preset="fast", pose_scale=0.0, face=False)
    assert (config.fast.residuals_every, config.fast.reuse_every) == (1, 2)
    check_fast(pipelines["pooled"], config)


def test_tokens_are_merged_only_where_frames_attend_to_themselves(pipelines: dict[str, XDynaPipeline]) -> None:
    pipeline = XDynaPipeline(**pipelines["pooled"].components)
    plain = {"down_block_types": ("DownBlockMotion",) * 2, "up_block_types": ("UpBlockMotion",) * 2}
    pipeline.unet = tiny_pipeline(adapter=False, **plain).unet
    with pytest.raises(UserError, match="no self-attention on its way down"):
        check_fast(pipeline, resolved("infer/x-dyna", fast={"merge_tokens": 0.5})[0])


def test_spacing_is_refused_with_lcm_and_reaches_other_schedulers(pipelines: dict[str, XDynaPipeline]) -> None:
    own = pipelines["pooled"].scheduler
    trailing = build_scheduler("dpm++", own, "trailing")
    trailing.set_timesteps(4)
    assert int(trailing.timesteps[0]) == own.config.num_train_timesteps - 1
    assert build_scheduler(None, own) is own
    pipeline = XDynaPipeline(**{**pipelines["pooled"].components, "scheduler": build_scheduler("lcm", own)})
    config, _ = resolved("infer/x-dyna", fast={"spacing": "trailing"})
    with pytest.raises(UserError, match="timesteps of its own"):
        check_fast(pipeline, config)
    with pytest.raises(UserError, match="guidance_from"):
        load_config(AnimateConfig, values={"fast": {"guidance_from": 0.5, "guidance_to": 0.5}})


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_with_a_distilled_lora_and_a_small_decoder(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photo(tmp_path / "photo.png")
    make_driver(tmp_path / "dance.mp4", 3)
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    (model / "animate.yaml").write_text("size: 32x48\nsteps: 25\nguidance: 2.0\nwindow: 2\noverlap: 0\n")
    site = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    source = torch.Generator().manual_seed(0)
    lora = {
        f"unet.{site}.lora_{side}.weight": torch.randn(*shape, generator=source)
        for side, shape in (("A", (2, 32)), ("B", (32, 2)))
    }
    save_file(lora, tmp_path / "lcm.safetensors")
    settings = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    AutoencoderTiny(**settings, **widths).save_pretrained(tmp_path / "small")
    AutoencoderTiny(**settings, **widths, latent_channels=8).save_pretrained(tmp_path / "other")
    base = ["animate", "--model", str(model), "--ref", f"{tmp_path}/photo.png", "-o", f"{tmp_path}/out.mp4"]
    base += ["--pose-video", f"{tmp_path}/dance.mp4", "--frames", "2", "--no-face", "--preset", "turbo"]
    base += ["--lora", f"{tmp_path}/lcm.safetensors"]
    assert main([*base, "--small-decoder", str(tmp_path / "small")]) == 0
    record = json.loads((tmp_path / "out.mp4.json").read_text())["resolved"]
    assert (record["steps"], record["scheduler"], record["guidance"]) == (4, "lcm", 1.0)
    assert "distilled" in "".join(capsys.readouterr())
    first = (tmp_path / "out.mp4").read_bytes()
    assert main(base) == 0
    assert (tmp_path / "out.mp4").read_bytes() != first
    assert main([*base, "--small-decoder", str(tmp_path / "other")]) == 2
    assert "decodes 8 channels" in capsys.readouterr().err
    assert main([*base, "--small-decoder", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err


# --- the script that prices them --------------------------------------------------------------------------------------


def test_the_bars_are_judged() -> None:
    spec = spec_from_file_location("measure_fast", Path(__file__).resolve().parents[1] / "scripts" / "measure_fast.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)

    def row(psnr: float, seconds: float) -> dict[str, Any]:
        figures = {"psnr": psnr, "ssim": 0.5, "motion": 0.7, "energy": 1.0}
        return {"seconds": seconds, "truth": figures, "exact": figures, "same": figures}

    report: dict[str, Any] = {
        "quality": {
            "exact": row(20.0, 10), "balanced": row(19.8, 5), "fast": row(18.9, 2), "turbo": row(15.0, 1),
            "balanced" + script.SAME: row(20.2, 6), "fast" + script.SAME: row(19.0, 6),
        },
        "operations": {"exact": 100.0, "balanced": 38.0, "fast": 21.0, "turbo": 10.0, "turbo + LoRA": 5.0},
        "seconds": {},
    }  # fmt: skip
    bars = {(bar["preset"], bar["what"]): bar["met"] for bar in script.judged(report)}
    assert bars == {
        ("balanced", "operations"): True, ("balanced", "dB lost to exact"): True,
        ("balanced", "dB lost to exact in its own steps"): False,
        ("fast", "operations"): False, ("fast", "dB lost to exact"): False,
        ("fast", "dB lost to exact in its own steps"): True,
    }  # fmt: skip
    told = script.tables(report)
    assert "| balanced | 2.63x |  | 2.00x | 19.80 (-0.20) | -0.40 | 0.500 (+0.000) |" in told
    assert "| turbo + LoRA | 20.00x |" in told
    plain = script.settings("fast" + script.SAME, load_config(AnimateConfig, "infer/x-dyna"))
    assert (plain.steps, plain.scheduler, plain.fast.reuse_every) == (10, "dpm++", 1)
