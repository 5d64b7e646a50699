"""Saving, loading, LoRA, offloading, types: what a pipeline does beside a call."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler
from safetensors.torch import load_file
from test_pipeline import recorded, run
from tiny_models import tiny_inputs, tiny_pipeline
from torch import nn

from xdyna import XDynaPipeline
from xdyna.adapters.motion_lora import add_lora, save_lora, unload_lora

LIMITS = {"min_wh": [32, 40], "max_wh": [40, 64], "multiple": 8}


@pytest.fixture(scope="module")
def pipeline() -> XDynaPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def folder(pipeline: XDynaPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    pipeline.save_pretrained(path)
    return path


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# --- saving and loading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"text": True, "image_prompt": True, "size_limits": LIMITS},
        {"face": False, "adapter": False},
        {"pool_group_norm": False, "reference_timestep": "zero"},
    ],
    ids=["stored prompt", "everything", "bare", "per frame"],
)
def test_round_trip(settings: dict[str, Any], tmp_path: Path) -> None:
    saved = tiny_pipeline(**settings)
    face = saved.face_controlnet is not None
    saved.save_pretrained(tmp_path)
    loaded = quiet(XDynaPipeline.from_pretrained(tmp_path))
    assert set(loaded.components) == set(saved.components)
    for name, part in saved.components.items():
        assert type(loaded.components[name]) is type(part), name
        if isinstance(part, nn.Module):
            got, wanted = loaded.components[name].state_dict(), part.state_dict()
            assert got.keys() == wanted.keys()
            assert all(torch.equal(got[key], wanted[key]) for key in wanted), name
    assert loaded.config["size_limits"] == settings.get("size_limits")
    assert torch.equal(run(saved, face=face), run(loaded, face=face))


def test_saved_unet_has_no_adapter_weights(folder: Path) -> None:
    name = "diffusion_pytorch_model.safetensors"
    assert not [key for key in load_file(folder / "unet" / name) if "ref" in key or "image" in key]
    assert all("to_q_ref" in key or "to_out_ref" in key for key in load_file(folder / "dynamics_adapter" / name))


def test_own_classes_are_recorded_under_the_package(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["xdyna", "XDynaUNet"]
    assert index["pose_controlnet"] == ["xdyna", "PoseControlNet"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["image_prompt"] == [None, None]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_as_a_custom_pipeline(
    kind: str, folder: Path, pipeline: XDynaPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers copies the file into a cache of its own and loads it from there."""
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    spec = importlib.util.find_spec("xdyna.pipeline")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin)
    custom = source if kind == "file" else source.parent
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(custom))
    loaded = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(custom), trust_remote_code=True)
    assert type(loaded).__name__ == "XDynaPipeline"
    assert type(loaded).__module__.startswith("diffusers_modules.")
    assert (tmp_path / "modules" / "diffusers_modules" / "local" / "pipeline.py").is_file()
    assert torch.equal(run(quiet(loaded)), run(pipeline))
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(run(quiet(XDynaPipeline.from_pretrained(tmp_path / "again"))), run(pipeline))


def test_a_component_can_be_exchanged_on_loading(folder: Path) -> None:
    scheduler = EulerDiscreteScheduler(beta_schedule="linear")
    loaded = XDynaPipeline.from_pretrained(folder, scheduler=scheduler, face_controlnet=None)
    assert loaded.scheduler is scheduler
    assert loaded.face_controlnet is None
    assert loaded.dynamics_adapter.is_attached


def test_components_make_another_pipeline(pipeline: XDynaPipeline) -> None:
    """The adapters are attached to the shared UNet already."""
    again = quiet(XDynaPipeline(**pipeline.components))
    assert again.dynamics_adapter.is_on(again.unet)
    assert torch.equal(run(again), run(pipeline))


def test_an_adapter_of_another_unet_is_refused() -> None:
    parts = {**tiny_pipeline().components, "unet": tiny_pipeline(adapter=False).unet}
    with pytest.raises(ValueError, match="already attached"):
        XDynaPipeline(**parts)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_wh": [32, 32]}, "size_limits has keys"),
        ({**LIMITS, "multiple": 6}, "multiple is 6, wanted a multiple of the VAE's 4"),
        ({**LIMITS, "min_wh": [48, 40]}, "the smaller size first"),
        ({**LIMITS, "min_wh": [16, 40]}, "wanted 20 px or more"),
    ],
)
def test_size_limits_that_make_no_sense(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(size_limits=limits)


# --- types and devices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, folder: Path, pipeline: XDynaPipeline) -> None:
    """Latents stay float32 and start from the same noise; a half type changes them by rounding."""
    half = quiet(XDynaPipeline.from_pretrained(folder, dtype=dtype))
    assert half.unet.dtype == half.vae.dtype == dtype
    got, wanted = run(half, output_type="latent"), run(pipeline, output_type="latent")
    assert got.dtype == torch.float32
    assert 0 < (got - wanted).abs().mean() < 0.1 * wanted.abs().mean()
    frames = run(half, output_type="np")
    assert frames.dtype == "float32"


def test_offload_order_names_components() -> None:
    pipeline = tiny_pipeline(text=True, image_prompt=True)
    assert set(XDynaPipeline.model_cpu_offload_seq.split("->")) <= set(pipeline.components)


def test_model_offload_hooks_reach_every_network() -> None:
    """On a CPU nothing moves, but every network must be entered by the way that would bring it to the device."""
    pipeline = tiny_pipeline(text=True, image_prompt=True)
    wanted = run(pipeline, prompt="abc")
    pipeline.enable_model_cpu_offload(device="cpu")
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    # The Dynamics-Adapter has no forward: its layers are children of the UNet's attention and travel with it.
    adapter = networks.pop("dynamics_adapter")
    shared = {id(parameter) for parameter in pipeline.unet.parameters()}
    assert all(id(parameter) in shared for parameter in adapter.parameters())
    entered: dict[str, int] = dict.fromkeys(networks, 0)
    for name, part in networks.items():
        count_entries(part._hf_hook, name, entered)
    assert torch.equal(run(pipeline, prompt="abc"), wanted)
    assert all(entered.values()), entered
    assert all(hasattr(part, "_hf_hook") for part in networks.values())  # in place again for the next call
    pipeline.remove_all_hooks()


def count_entries(hook: Any, name: str, entered: dict[str, int]) -> None:
    before = hook.pre_forward

    def pre_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        entered[name] += 1
        return before(module, *args, **kwargs)

    hook.pre_forward = pre_forward


def test_vae_switches(pipeline: XDynaPipeline) -> None:
    plain = run(pipeline, output_type="pt", vae_batch=3)
    pipeline.enable_vae_slicing()
    assert pipeline.vae.use_slicing
    torch.testing.assert_close(run(pipeline, output_type="pt", vae_batch=3), plain, rtol=0, atol=1e-5)
    pipeline.disable_vae_slicing()
    pipeline.enable_vae_tiling()
    assert pipeline.vae.use_tiling
    assert run(pipeline, output_type="pt").shape == plain.shape
    pipeline.disable_vae_tiling()
    assert not pipeline.vae.use_slicing
    assert not pipeline.vae.use_tiling


def test_xformers_is_refused(pipeline: XDynaPipeline) -> None:
    with pytest.raises(ValueError, match="would take the adapters off"):
        pipeline.enable_xformers_memory_efficient_attention()
    pipeline.enable_attention_slicing()  # of the ControlNets; the UNet keeps its adapters
    assert pipeline.dynamics_adapter.is_on(pipeline.unet)
    pipeline.disable_attention_slicing()


def test_gradients_are_off(pipeline: XDynaPipeline) -> None:
    with recorded(pipeline.unet) as calls:
        frames = run(pipeline)
    assert not frames.requires_grad
    assert not calls[0]["0"].requires_grad
    assert not next(iter(pipeline.decode_frames(frames))).requires_grad


# --- LoRA -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def lora_files(tmp_path: Path) -> dict[str, Path]:
    """Two LoRA files, made on a UNet of their own with an adapter attached."""
    files = {}
    for seed, (name, parts) in enumerate({"moves": ["motion"], "looks": ["spatial", "dynamics"]}.items()):
        unet = tiny_pipeline().unet
        generator = torch.Generator().manual_seed(seed)
        for parameter in add_lora(unet, rank=2, parts=parts, name=name):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        files[name] = save_lora(unet, tmp_path / name, name=name)
        unload_lora(unet)
    return files


def test_lora_by_the_pipeline_s_own_loader(lora_files: dict[str, Path]) -> None:
    pipeline = tiny_pipeline()
    plain = run(pipeline)
    for name, path in lora_files.items():
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    assert pipeline.get_list_adapters() == {"unet": ["moves", "looks"]}
    runs = {}
    for names, weights in (
        (["moves"], [1.0]),
        (["looks"], [1.0]),
        (["moves", "looks"], [1.0, 0.5]),
        (["moves"], [0.0]),
    ):
        pipeline.set_adapters(names, weights)
        runs[tuple(names), tuple(weights)] = run(pipeline)
    sums = [float(frames.double().sum()) for frames in runs.values()]
    assert len(set(sums)) == 4
    torch.testing.assert_close(runs[("moves",), (0.0,)], plain, rtol=0, atol=1e-5)
    pipeline.disable_lora()
    assert torch.equal(run(pipeline), plain)
    pipeline.unload_lora_weights()
    assert torch.equal(run(pipeline), plain)
    assert not [name for name, _ in pipeline.unet.named_parameters() if "lora" in name]


def test_a_pipeline_with_a_lora_makes_another(lora_files: dict[str, Path]) -> None:
    pipeline = tiny_pipeline()
    path = lora_files["looks"]
    pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="looks")
    assert torch.equal(run(quiet(XDynaPipeline(**pipeline.components))), run(pipeline))


def test_fused_lora_equals_loaded(lora_files: dict[str, Path]) -> None:
    pipeline = tiny_pipeline()
    plain = run(pipeline)
    path = lora_files["looks"]
    pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="looks")
    loaded = run(pipeline)
    pipeline.fuse_lora()
    torch.testing.assert_close(run(pipeline), loaded, rtol=0, atol=1e-4)
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    torch.testing.assert_close(run(pipeline), plain, rtol=0, atol=1e-4)


def test_inputs_are_not_changed(pipeline: XDynaPipeline) -> None:
    inputs, again = tiny_inputs(), tiny_inputs()
    pipeline(**inputs, num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="latent")
    assert (inputs["reference"] == again["reference"]).all()
    assert (inputs["pose_maps"] == again["pose_maps"]).all()
    assert all((a == b).all() for a, b in zip(inputs["face_maps"], again["face_maps"], strict=True))
