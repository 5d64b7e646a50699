"""Official files to a pipeline folder and back: nothing lost, nothing left over, bad files refused in one line."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import (
    SETTINGS,
    is_base,
    numbered_image_layers,
    seeded,
    small_controlnet,
    small_resampler,
    small_unet,
    write_official,
    write_sd15,
)
from safetensors.torch import load_file, save_file
from small_models import SMALL_CONTROLNET
from torch import Tensor

from xdyna.checkpoints import OfficialFiles, Report, TensorFile, convert_official, export_official, find_official_files
from xdyna.checkpoints.convert import COMPONENTS, wanted_shapes
from xdyna.checkpoints.layout import FACE_FILE, IP_ADAPTER_FILE, POSE_FILE, UNET_FILE
from xdyna.controlnets.pose import PoseControlNet
from xdyna.errors import UserError

ATTN1 = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
PE = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> OfficialFiles:
    return write_official(tmp_path_factory.mktemp("official") / "files")


@pytest.fixture(scope="module")
def pipeline_folder(official: OfficialFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "converted"
    convert(official, folder)
    return folder


def convert(files: OfficialFiles, folder: Path, **kwargs: Any) -> Report:
    """Convert with the small models' settings."""
    return convert_official(files, folder, settings=SETTINGS, **kwargs)


def refused(files: OfficialFiles, folder: Path, **kwargs: Any) -> str:
    """The one line with which a conversion is refused; nothing is left behind."""
    before = set(folder.parent.iterdir())
    with pytest.raises(UserError) as error:
        convert(files, folder, **kwargs)
    assert set(folder.parent.iterdir()) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def unet_file(folder: Path, tensors: dict[str, Any], name: str = "unet.ckpt") -> Path:
    torch.save(tensors, folder / name)
    return folder / name


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key]) and left[key].dtype == right[key].dtype for key in left
    )


# --- round trip and what is written ---------------------------------------------------------------------------------


def test_back_and_forth_is_the_identity(pipeline_folder: Path, tmp_path: Path) -> None:
    export_official(pipeline_folder, tmp_path / "back")
    back = {
        name: torch.load(tmp_path / "back" / path, weights_only=True)
        for name, path in (("unet", UNET_FILE), ("pose", POSE_FILE), ("face", FACE_FILE), ("ip", IP_ADAPTER_FILE))
    }
    unet = small_unet()
    assert same(back["unet"]["state_dict"], unet)
    assert same(back["pose"]["state_dict"], small_controlnet())
    assert back["face"]["state_dict"]["controlnet_cond_embedding.conv_in.weight"].shape[1] == 6
    assert same(back["ip"]["image_proj"], small_resampler())
    assert same(back["ip"]["ip_adapter"], numbered_image_layers(unet))

    # What was written back lies where the official README wants it, and converts to the same bytes.
    found = find_official_files(tmp_path / "back")
    assert set(found.given()) == {"unet", "pose_controlnet", "face_controlnet", "ip_adapter", "sd15"}
    convert(found, tmp_path / "again")
    for path in pipeline_folder.rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(pipeline_folder)).read_bytes(), path


def test_the_folder_loads_as_a_pipeline(pipeline_folder: Path, tmp_path: Path) -> None:
    from xdyna.pipeline import XDynaPipeline

    pipe = XDynaPipeline.from_pretrained(pipeline_folder)
    assert pipe.dynamics_adapter.is_attached
    assert pipe.image_prompt.num_image_tokens == 3
    assert pipe.unet.config.motion_norm_num_groups == 16
    assert pipe.face_controlnet.config.conditioning_channels == 6
    assert pipe.scheduler.config.beta_schedule == "linear"

    # The index is what the pipeline itself writes.
    pipe.save_pretrained(tmp_path / "saved")
    ours, theirs = (json.loads((f / "model_index.json").read_text()) for f in (pipeline_folder, tmp_path / "saved"))
    assert ours == {key: theirs[key] for key in ours}
    assert {key for key in theirs if not key.startswith("_") and isinstance(theirs[key], list)} == set(COMPONENTS)
    for name in ("unet", "dynamics_adapter", "image_prompt", "pose_controlnet", "face_controlnet", "vae"):
        saved, converted = (load_file(f / name / WEIGHTS) for f in (tmp_path / "saved", pipeline_folder))
        assert same(saved, converted), name


def test_report_accounts_for_every_tensor(official: OfficialFiles, tmp_path: Path) -> None:
    report = convert(official, tmp_path / "out")
    for name in ("unet", "dynamics_adapter", "image_prompt", "pose_controlnet", "face_controlnet", "vae"):
        assert sum(report.tensors[name].values()) == len(load_file(tmp_path / "out" / name / WEIGHTS))
    assert report.tensors["dynamics_adapter"] == {str(official.unet): 12}
    assert report.warnings == [
        f"{tmp_path / 'out'}: converted without text_encoder (--sd15), tokenizer (--sd15), image_encoder "
        "(--image-encoder); it is no complete pipeline yet"
    ]


def test_cast(official: OfficialFiles, tmp_path: Path) -> None:
    convert(official, tmp_path / "half", dtype=torch.float16)
    half = load_file(tmp_path / "half" / "unet" / WEIGHTS)
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    assert torch.equal(half["conv_in.weight"], small_unet()["conv_in.weight"].half())
    # A half-precision checkpoint keeps its type, its rounded positional encodings included.
    weights = {key: value.half() for key, value in small_unet().items()}
    path = unet_file(tmp_path, weights)
    convert(replace(official, unet=path), tmp_path / "kept")
    export_official(tmp_path / "kept", tmp_path / "back")
    assert same(torch.load(tmp_path / "back" / UNET_FILE, weights_only=True)["state_dict"], weights)


def test_vae_with_the_names_of_sd15(official: OfficialFiles, pipeline_folder: Path, tmp_path: Path) -> None:
    convert(replace(official, sd15=write_sd15(tmp_path / "sd15", old_names=True)), tmp_path / "out")
    assert same(load_file(tmp_path / "out" / "vae" / WEIGHTS), load_file(pipeline_folder / "vae" / WEIGHTS))


def test_files_of_other_formats(official: OfficialFiles, pipeline_folder: Path, tmp_path: Path) -> None:
    """safetensors, and torch's format before 1.6; told apart by content, not by suffix."""
    save_file(small_unet(), tmp_path / "unet.ckpt")
    torch.save(small_controlnet(), tmp_path / "pose.ckpt", _use_new_zipfile_serialization=False)
    files = replace(official, unet=tmp_path / "unet.ckpt", pose_controlnet=tmp_path / "pose.ckpt")
    convert(files, tmp_path / "out")
    for name in ("unet", "pose_controlnet"):
        assert same(load_file(tmp_path / "out" / name / WEIGHTS), load_file(pipeline_folder / name / WEIGHTS))


# --- partial checkpoints --------------------------------------------------------------------------------------------


def test_partial_checkpoint_over_base_files(official: OfficialFiles, pipeline_folder: Path, tmp_path: Path) -> None:
    """X-Dyna's own layers over Stable Diffusion, AnimateDiff and IP-Adapter: each tensor from its first holder."""
    unet = small_unet()
    own = {key: value for key, value in unet.items() if "to_q_ff" in key or "to_out_ff" in key}
    motion = {key: value for key, value in unet.items() if ".motion_modules." in key}
    base = {key: value for key, value in unet.items() if is_base(key)}
    files = replace(
        official,
        unet=unet_file(tmp_path, {**own, "conv_in.bias": unet["conv_in.bias"] + 1}),
        motion=unet_file(tmp_path, motion, "mm_sd_v15.ckpt"),
        sd15=write_sd15(tmp_path / "sd15", base),
    )
    report = convert(files, tmp_path / "out")
    for name in ("dynamics_adapter", "image_prompt"):
        assert same(load_file(tmp_path / "out" / name / WEIGHTS), load_file(pipeline_folder / name / WEIGHTS))
    wanted = load_file(pipeline_folder / "unet" / WEIGHTS)
    wanted["conv_in.bias"] += 1
    assert same(load_file(tmp_path / "out" / "unet" / WEIGHTS), wanted)
    assert report.tensors["unet"][str(files.unet)] == 1
    assert report.tensors["unet"][str(files.motion)] == len([key for key in motion if not key.endswith(".pe")])
    assert not any("to_out_ff" in warning for warning in report.warnings)


def test_missing_parts_are_named(official: OfficialFiles, tmp_path: Path) -> None:
    unet = small_unet()
    without_motion = {key: value for key, value in unet.items() if ".motion_modules." not in key}
    message = refused(replace(official, unet=unet_file(tmp_path, without_motion)), tmp_path / "out")
    assert "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight" in message
    assert "--motion" in message
    without_norm = {key: value for key, value in unet.items() if not key.startswith("conv_norm_out")}
    message = refused(replace(official, unet=unet_file(tmp_path, without_norm)), tmp_path / "out")
    assert "2 of" in message
    assert "conv_norm_out.weight, conv_norm_out.bias" in message
    assert "--sd15" in message
    adapter_only = {key: value for key, value in unet.items() if not is_base(key)}
    message = refused(replace(official, unet=unet_file(tmp_path, adapter_only)), tmp_path / "out")
    assert "wanted the UNet, which has conv_in.weight" in message


def test_missing_positional_encodings_are_computed(
    official: OfficialFiles, pipeline_folder: Path, tmp_path: Path
) -> None:
    weights = {key: value for key, value in small_unet().items() if not key.endswith(".pe")}
    convert(replace(official, unet=unet_file(tmp_path, weights)), tmp_path / "out")
    assert same(load_file(tmp_path / "out" / "unet" / WEIGHTS), load_file(pipeline_folder / "unet" / WEIGHTS))


def test_missing_adapter_layers_warn(official: OfficialFiles, tmp_path: Path) -> None:
    """Queries start from the host's as upstream; outputs are zero, which switches the adapter off."""
    weights = {key: value for key, value in small_unet().items() if "to_out_ff" not in key and "to_q_ff" not in key}
    texts = convert(replace(official, unet=unet_file(tmp_path, weights)), tmp_path / "out").warnings
    assert sum("to_out_ff" in text for text in texts) == 1
    assert sum("to_q_ff" in text for text in texts) == 1
    adapter = load_file(tmp_path / "out" / "dynamics_adapter" / WEIGHTS)
    layer = f"layers.{ATTN1.replace('.', '-')}"
    assert torch.equal(adapter[f"{layer}.to_q_ref.weight"], weights[f"{ATTN1}.to_q.weight"])
    assert all(not value.any() for key, value in adapter.items() if "to_out_ref" in key)


def test_image_prompt_needs_its_resampler(official: OfficialFiles, tmp_path: Path) -> None:
    assert "--ip-adapter" in refused(replace(official, ip_adapter=None), tmp_path / "out")


def test_face_controlnet_is_optional(official: OfficialFiles, tmp_path: Path) -> None:
    convert(replace(official, face_controlnet=None), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["face_controlnet"] == [None, None]


# --- files that are refused -----------------------------------------------------------------------------------------


def test_unknown_tensors_are_named(official: OfficialFiles, tmp_path: Path) -> None:
    weights = {**small_unet(), "mid_block.motion_modules.0.temporal_transformer.norm.weight": torch.ones(64)}
    message = refused(replace(official, unet=unet_file(tmp_path, weights)), tmp_path / "out")
    assert "mid_block.motion_modules.0.temporal_transformer.norm.weight" in message
    ip_adapter = {"image_proj": small_resampler(), "ip_adapter": {"2.to_k_ip.weight": torch.ones(2, 2)}}
    path = unet_file(tmp_path, ip_adapter, "ip.bin")
    assert "ip_adapter.2.to_k_ip.weight" in refused(replace(official, ip_adapter=path), tmp_path / "out")


def test_another_models_checkpoint(official: OfficialFiles, tmp_path: Path) -> None:
    assert official.pose_controlnet is not None
    message = refused(replace(official, unet=official.pose_controlnet), tmp_path / "out")
    assert message.startswith(f"{official.pose_controlnet}: wanted the UNet, which has conv_out.weight")
    message = refused(replace(official, pose_controlnet=official.unet), tmp_path / "out")
    assert message.startswith(f"{official.unet}: wanted the ControlNet, which has controlnet_cond_embedding")
    swapped = replace(official, face_controlnet=official.pose_controlnet)
    assert "an S-Face ControlNet has 6" in refused(swapped, tmp_path / "out")


def test_wrong_shape_is_named(official: OfficialFiles, tmp_path: Path) -> None:
    weights = small_unet() | {"conv_norm_out.weight": torch.ones(7)}
    message = refused(replace(official, unet=unet_file(tmp_path, weights)), tmp_path / "out")
    assert "conv_norm_out.weight has shape [7], the model wants [32]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(official: OfficialFiles, tmp_path: Path, value: float) -> None:
    weights = small_unet()
    weights[f"{ATTN1}.to_k.weight"][3, 4] = value
    path = unet_file(tmp_path, weights)
    message = refused(replace(official, unet=path), tmp_path / "out")
    assert message.startswith(f"{path}: {ATTN1}.to_k.weight holds 1 of 1024 values that are NaN or infinite")


def test_values_too_large_for_the_dtype(official: OfficialFiles, tmp_path: Path) -> None:
    weights = small_unet()
    weights["conv_in.bias"][0] = 1e5
    message = refused(replace(official, unet=unet_file(tmp_path, weights)), tmp_path / "out", dtype=torch.float16)
    assert "conv_in.bias, as float16," in message


def test_another_positional_encoding(official: OfficialFiles, tmp_path: Path) -> None:
    weights = small_unet()
    weights[PE] = weights[PE] * 1.01
    message = refused(replace(official, unet=unet_file(tmp_path, weights)), tmp_path / "out")
    assert f"{PE} differs from the sinusoid by up to 0.01" in message


class Harmless:
    """Unpickled by plain pickle it would touch a file; stands for any code."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return Path.touch, (self.touched,)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_pickle_with_code_is_refused_unrun(official: OfficialFiles, tmp_path: Path, how: str) -> None:
    trap = tmp_path / "trap"
    path = tmp_path / "unet.ckpt"
    content = {"state_dict": {"conv_in.weight": torch.ones(2), "x": Harmless(trap)}}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    message = refused(replace(official, unet=path), tmp_path / "out")
    # The newest pickle protocols do not even get as far as naming what they want to call.
    words = "not a checkpoint, or a pickle" if how == "pickle" else "this pickle wants to run code (getattr)"
    assert message.startswith(f"{path}: refused: {words}")
    assert "weights_only" not in message
    assert not trap.exists()


def test_damaged_files(official: OfficialFiles, tmp_path: Path) -> None:
    assert official.unet is not None
    whole = official.unet.read_bytes()
    save_file(small_unet(), tmp_path / "whole.safetensors")
    half_safetensors = (tmp_path / "whole.safetensors").read_bytes()[:-1000]
    contents = {
        "cut.ckpt": (whole[: len(whole) // 2], "damaged or cut short"),
        "cut.safetensors": (half_safetensors, "cut short"),
        "empty.ckpt": (b"", "empty"),
        "page.ckpt": (b"<!DOCTYPE html><html>not found</html>", "web page"),
        "pointer.ckpt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        "text.ckpt": (b"not a checkpoint at all", "wanted a file of tensors only"),
    }
    for name, (content, words) in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        message = refused(replace(official, unet=path), tmp_path / "out")
        assert message.startswith(f"{path}: ")
        assert words in message
    assert "no such file" in refused(replace(official, unet=tmp_path / "nowhere.ckpt"), tmp_path / "out")
    torch.save([torch.ones(2)], tmp_path / "list.ckpt")
    assert "holds a list" in refused(replace(official, unet=tmp_path / "list.ckpt"), tmp_path / "out")


def test_two_names_that_become_one(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "a": torch.ones(1)}, tmp_path / "twice.ckpt")
    with pytest.raises(UserError, match="two tensors are named a"):
        TensorFile(tmp_path / "twice.ckpt")


def test_config_mistakes(official: OfficialFiles, tmp_path: Path) -> None:
    def message(settings: dict[str, Any]) -> str:
        with pytest.raises(UserError) as error:
            convert_official(official, tmp_path / "out", settings=settings)
        return str(error.value)

    assert "unknown section 'unett'; did you mean unet?" in message({"unett": {}})
    assert "unknown key unet.norm_num_group; did you mean" in message({"unet": {"norm_num_group": 8}})
    assert "use_motion_module is False" in message({"unet": {"use_motion_module": False}})
    assert "no model can be built" in message({**SETTINGS, "unet": {"norm_num_groups": 5}})
    assert "3 heads of width 7" in message({**SETTINGS, "image_prompt": {"heads": 3, "dim_head": 7}})


def test_folder_in_the_way(official: OfficialFiles, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    assert "already there" in refused(official, folder)
    assert "no earlier result is in it" in refused(official, folder, overwrite=True)
    assert (folder / "mine.txt").read_text() == "keep"
    (folder / "model_index.json").touch()
    convert(official, folder, overwrite=True)
    assert not (folder / "mine.txt").exists()
    (tmp_path / "file").touch()
    assert "is a file" in refused(official, tmp_path / "file", overwrite=True)
    with pytest.raises(UserError, match="file: cannot write"):
        convert(official, tmp_path / "file" / "out")
    with pytest.raises(UserError, match=r"no model_index\.json"):
        export_official(tmp_path / "nothing", tmp_path / "back")


def test_what_is_read_is_not_replaced(official: OfficialFiles, tmp_path: Path) -> None:
    assert official.unet is not None
    source = tmp_path / "source"
    source.mkdir()
    unet = Path(shutil.copy(official.unet, source))
    (source / "model_index.json").touch()
    assert "which is read" in refused(official.with_given(unet=unet), source, overwrite=True)
    assert unet.is_file()
    folder = tmp_path / "pipeline"
    convert(official, folder)
    with pytest.raises(UserError, match="no earlier result"):
        export_official(folder, folder, overwrite=True)
    assert (folder / "model_index.json").is_file()


def test_layout_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_official_files(tmp_path / "nowhere")
    with pytest.raises(UserError, match="none of the official checkpoints"):
        find_official_files(tmp_path)
    (tmp_path / "unet").mkdir()
    for epoch in (1, 2):
        (tmp_path / "unet" / f"unet-checkpoint-epoch-{epoch}.ckpt").touch()
    with pytest.raises(UserError, match="2 candidates for the unet"):
        find_official_files(tmp_path)
    with pytest.raises(UserError, match="nothing to convert"):
        convert_official(OfficialFiles(), tmp_path / "out")


def test_disk_full_leaves_nothing(official: OfficialFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xdyna.checkpoints.convert.write_safetensors", full)
    assert "no space left" in refused(official, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of peak memory")
def test_memory_stays_near_the_size_of_the_file(tmp_path: Path) -> None:
    """The bound of 1.5 files; at full size it is measured by scripts/measure_conversion.py."""
    with torch.device("meta"):
        shapes = wanted_shapes(PoseControlNet(**{**SMALL_CONTROLNET, "block_out_channels": (256, 512)}))
    torch.save(seeded(shapes, 0), tmp_path / "pose.ckpt")
    code = """
        import re, sys
        from pathlib import Path
        from xdyna.checkpoints import OfficialFiles, convert_official
        def read(word):
            return int(re.search(rf"{word}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        folder = Path(sys.argv[1])
        convert_official(OfficialFiles(pose_controlnet=folder / "pose.ckpt"), folder / "first")  # imports, caches
        before = read("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # restart the count of the peak
        convert_official(OfficialFiles(pose_controlnet=folder / "pose.ckpt"), folder / "second")
        print(read("VmHWM") - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, check=True
    )
    size = (tmp_path / "pose.ckpt").stat().st_size
    assert size > 80e6
    assert int(run.stdout) < 1.5 * size
