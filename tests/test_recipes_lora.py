"""LoRA recipes and baselines through the command: what trains, what stays, and that pipeline and command take it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from animate_inputs import make_driver, make_photo
from safetensors.torch import load_file
from tiny_models import tiny_feature_extractor, tiny_image_encoder, tiny_pipeline
from typer.testing import CliRunner

from xdyna.adapters.motion_lora import WEIGHT_NAME, add_lora, lora_layers
from xdyna.cli import app, main
from xdyna.configs import load_config
from xdyna.configs.lora_recipes import (
    CharacterLoraConfig,
    IpAdapterConfig,
    LoraConfig,
    MotionLoraConfig,
    ReferenceNetConfig,
)
from xdyna.configs.recipes import RECIPES
from xdyna.data.album import AlbumSource, draw_album
from xdyna.data.source import ClipSource, build_source, draw_batch
from xdyna.data.synthetic.clips import World
from xdyna.errors import UserError
from xdyna.pipeline import XDynaPipeline
from xdyna.train.baselines import freeze_unread, with_image_prompt, with_reference_net
from xdyna.train.parts import load_base, load_init
from xdyna.train.start import started_as_base
from xdyna.train.system import ClipSystem
from xdyna.video import VideoReader

SMALL = [
    "world.size_wh=[32, 48]", "world.framings={full: 1.0}", "threads=1", "workers=0", "sample_every=0", "save_every=2",
    "batch=1", "frames=2", "warmup=0", "validate_clips=0", "lr=0.01",
]  # fmt: skip
LORAS = {"motion_lora": ".motion_modules.", "character_lora": ".attentions."}


def run(*args: str, base: Path, out: Path, steps: int = 3, sets: tuple[str, ...] = ()) -> str:
    """Run `xdyna train ARGS` on a base and return what it printed."""
    texts = [*SMALL, f"base={base}", *sets]
    command = ["train", *args, "--out", str(out), "--steps", str(steps)]
    result = CliRunner().invoke(app, [*command, *(part for text in texts for part in ("--set", text))])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight in a model folder, as `part/key`."""
    return {
        f"{path.parent.name}/{key}": value
        for path in sorted(folder.glob("*/*.safetensors"))
        for key, value in load_file(path).items()
    }


def load(folder: Path) -> XDynaPipeline:
    pipe = XDynaPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: XDynaPipeline, shade: int = 90) -> torch.Tensor:
    """Latents of three frames for a reference of one grey."""
    maps = np.zeros((3, 48, 32, 3), np.uint8)
    maps[:, 20:30, 14:18] = 255
    reference = np.full((48, 32, 3), shade, np.uint8)
    reference[:24] = 255 - shade
    return pipe(reference, maps, num_inference_steps=2, guidance_scale=1.0, output_type="latent",
                generator=torch.Generator().manual_seed(0)).frames  # fmt: skip


@pytest.fixture(scope="module", params=LORAS)
def trained_lora(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(recipe, LoRA file, what the command printed)."""
    out = tmp_path_factory.mktemp(request.param)
    said = run(request.param, base=tiny_folder, out=out)
    return request.param, out / "model" / WEIGHT_NAME, said


@pytest.mark.recipe
def test_a_lora_holds_its_own_layers_and_counts_them(trained_lora: Any) -> None:
    recipe, file, said = trained_lora
    values = load_file(file)
    assert values
    assert all(key.startswith("unet.") and LORAS[recipe] in key and ".lora_" in key for key in values)
    assert all(value.any() for key, value in values.items() if ".lora_B." in key)
    assert f"{recipe}: {sum(value.numel() for value in values.values()):,} of " in said
    assert sorted(path.name for path in file.parent.iterdir()) == [WEIGHT_NAME]


@pytest.mark.recipe
def test_the_pipeline_loads_scales_merges_and_unloads_a_lora(trained_lora: Any, tiny_folder: Path) -> None:
    _, file, _ = trained_lora
    pipe = load(tiny_folder)
    plain, before = latents(pipe), {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(str(file.parent), adapter_name="mine")
    changed = latents(pipe)
    assert (changed - plain).abs().max() > 1e-4
    pipe.set_adapters(["mine"], [0.0])
    assert torch.equal(latents(pipe), plain)
    pipe.set_adapters(["mine"], [1.0])
    pipe.fuse_lora()
    assert (latents(pipe) - changed).abs().max() < 1e-3
    pipe.unfuse_lora()
    assert (latents(pipe) - changed).abs().max() < 1e-3
    pipe.unload_lora_weights()
    assert set(pipe.unet.state_dict()) == set(before)
    assert (latents(pipe) - plain).abs().max() < 1e-3  # merging and unmerging rounds

    again = load(tiny_folder)
    again.load_lora_weights(str(file.parent), adapter_name="mine")
    again.unload_lora_weights()
    assert all(torch.equal(value, before[key]) for key, value in again.unet.state_dict().items())
    assert torch.equal(latents(again), plain)


@pytest.mark.recipe
def test_the_command_takes_a_lora(trained_lora: Any, tiny_folder: Path, tmp_path: Path) -> None:
    _, file, _ = trained_lora
    photo, driver = make_photo(tmp_path / "photo.png"), make_driver(tmp_path / "dance.mp4", 3)
    made = []
    for number, options in enumerate(([], ["--lora", f"{file}:0"], ["--lora", f"{file}:8"])):
        out = tmp_path / f"{number}.gif"
        assert main(["animate", "--ref", str(photo), "--pose-video", str(driver), "-o", str(out), "--model",
                     str(tiny_folder), *options]) == 0  # fmt: skip
        made.append(np.stack(list(VideoReader(out))))
    assert (made[0] == made[1]).all()
    assert (made[0] != made[2]).any()


@pytest.mark.recipe
def test_a_resumed_lora_equals_an_uninterrupted_one(tiny_folder: Path, tmp_path: Path) -> None:
    sets = ("cooldown=0", "ema=0.5")
    run("motion_lora", base=tiny_folder, out=tmp_path / "whole", steps=4, sets=sets)
    run("motion_lora", base=tiny_folder, out=tmp_path / "split", steps=2, sets=sets)
    run("motion_lora", "--resume", base=tiny_folder, out=tmp_path / "split", steps=4, sets=sets)
    whole, split = (load_file(tmp_path / name / "model" / WEIGHT_NAME) for name in ("whole", "split"))
    assert all(torch.equal(value, split[key]) for key, value in whole.items())


@pytest.mark.recipe
def test_a_lora_is_trained_further(trained_lora: Any, tiny_folder: Path, tmp_path: Path) -> None:
    recipe, file, _ = trained_lora
    run(recipe, "--init", str(file), base=tiny_folder, out=tmp_path / "more", steps=1, sets=("lr=1e-7",))
    first, second = load_file(file), load_file(tmp_path / "more" / "model" / WEIGHT_NAME)
    assert all((value - second[key]).abs().max() < 1e-5 for key, value in first.items())
    config = ["--set", f"base={tiny_folder}", "--out", str(tmp_path / "no"), "--init", str(file)]
    assert main(["train", recipe, *config, "--set", "rank=3"]) == 2
    assert main(["train", recipe, *config, "--set", "alpha=2"]) == 2


def test_other_files_are_no_start_for_a_lora(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    command = ["train", "motion_lora", "--set", f"base={tiny_folder}", "--out", str(tmp_path / "no"), "--init"]
    assert main([*command, str(tmp_path / "text.safetensors")]) == 2
    assert "cannot be read as a LoRA" in capsys.readouterr().err
    assert main([*command, str(tiny_folder / "vae" / "diffusion_pytorch_model.safetensors")]) == 2
    assert "a LoRA of another rank or place" in capsys.readouterr().err


BASELINES = {
    "reference_net": ("dynamics_adapter/",),
    "ip_adapter": ("image_prompt/", "image_encoder/", "dynamics_adapter/"),
}


@pytest.mark.recipe
@pytest.mark.parametrize("recipe", BASELINES)
@pytest.mark.parametrize("alone", [True, False])
def test_a_baseline_is_a_pipeline_in_which_the_rest_stays(
    recipe: str, alone: bool, tiny_folder: Path, tmp_path: Path
) -> None:
    own = "image_prompt" if recipe == "ip_adapter" else recipe
    sets = (f"trains=[{own}]",) if alone else ()
    said = run(recipe, base=tiny_folder, out=tmp_path, steps=2, sets=("scene_share=0", *sets))
    before, after = weights(tiny_folder), weights(tmp_path / "model")
    moved = {key for key in before.keys() | after.keys() if key not in before or key not in after
             or not torch.equal(before[key], after[key])}  # fmt: skip
    moved = {key for key in moved if not key.startswith(BASELINES[recipe])}
    if alone:
        assert not moved
    else:
        assert all(key.startswith("pose_controlnet/") or ".motion_modules." in key for key in moved)
        assert any(key.startswith("pose_controlnet/") for key in moved)
        assert any(".motion_modules." in key for key in moved)
    assert " parameters train" in said

    pipe = load(tmp_path / "model")
    assert (latents(pipe, 60) - latents(pipe, 200)).abs().max() > 1e-3
    photo, driver = make_photo(tmp_path / "photo.png"), make_driver(tmp_path / "dance.mp4", 3)
    assert main(["animate", "--ref", str(photo), "--pose-video", str(driver), "-o", str(tmp_path / "out.gif"),
                 "--model", str(tmp_path / "model")]) == 0  # fmt: skip


@pytest.mark.recipe
def test_a_baseline_is_trained_further(tiny_folder: Path, tmp_path: Path) -> None:
    for recipe in BASELINES:
        run(recipe, base=tiny_folder, out=tmp_path / recipe, steps=1, sets=("scene_share=0",))
        more = tmp_path / f"{recipe}-more"
        init = str(tmp_path / recipe / "model")
        run(recipe, "--init", init, base=tiny_folder, out=more, steps=1, sets=("scene_share=0", "lr=1e-7"))
        first, second = weights(tmp_path / recipe / "model"), weights(more / "model")
        assert first.keys() == second.keys()
        assert all((value - second[key]).abs().max() < 1e-4 for key, value in first.items())


def test_init_fills_the_image_encoder_that_trains_along(tiny_folder: Path, tmp_path: Path) -> None:
    trains = ("image_prompt", "image_encoder")
    first, second = (with_image_prompt(load_base(tiny_folder), None, 4) for _ in range(2))
    for name in trains:
        getattr(first, name).save_pretrained(tmp_path / name)
    assert load_init(second, tmp_path, trains) == list(trains)
    after = second.image_encoder.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in first.image_encoder.state_dict().items())


def test_a_baseline_with_a_reference_net_is_no_base(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "dynamics_adapter")
    net = with_reference_net(load_base(tiny_folder)).dynamics_adapter
    net.save_pretrained(tmp_path / "model" / "dynamics_adapter")
    with pytest.raises(UserError, match=r"a baseline of recipe reference_net, .* wanted the base it was trained on"):
        load_base(tmp_path / "model")


@pytest.mark.recipe
@pytest.mark.parametrize("own", [True, False])
def test_a_given_image_encoder_stays_frozen(own: bool, tiny_folder: Path, tmp_path: Path) -> None:
    """That of a base with an image prompt, which is trained further, or that of a folder."""
    base, sets = tiny_folder, ["scene_share=0", "trains=[image_prompt]", "tokens=3"]
    if own:
        base = tmp_path / "base"
        tiny_pipeline(image_prompt=True).save_pretrained(base)
        before = load_file(base / "image_encoder" / "model.safetensors")
    else:
        tiny_image_encoder().save_pretrained(tmp_path / "clip")
        tiny_feature_extractor().save_pretrained(tmp_path / "clip")
        sets.append(f"image_encoder={tmp_path / 'clip'}")
        before = load_file(tmp_path / "clip" / "model.safetensors")
    run("ip_adapter", base=base, out=tmp_path / "run", steps=1, sets=tuple(sets))
    model = tmp_path / "run" / "model"
    after = load_file(model / "image_encoder" / "model.safetensors")
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    pipe = load(model)
    assert pipe.dynamics_adapter is None
    assert pipe.image_prompt.num_image_tokens == 3
    assert (latents(pipe, 60) - latents(pipe, 200)).abs().max() > 1e-3


def lora_system(tiny_folder: Path, kind: str, cfg: LoraConfig) -> ClipSystem:
    parts = load_base(tiny_folder)
    add_lora(parts.unet, rank=cfg.rank, parts=(kind,))
    system = ClipSystem(parts, cfg, (), motion=kind == "motion")
    system.saved = {"lora": lora_layers(parts.unet)}
    return system


def small_config(kind: Any) -> Any:
    return load_config(kind, overrides=SMALL)


def system_and_source(recipe: str, tiny_folder: Path) -> tuple[ClipSystem, ClipSource]:
    torch.manual_seed(0)
    cfg: Any = small_config(RECIPES[recipe])
    source: ClipSource = build_source(cfg, frames=2) if recipe == "motion_lora" else _album()
    if recipe == "motion_lora":
        return lora_system(tiny_folder, "motion", cfg), source
    if recipe == "character_lora":
        return lora_system(tiny_folder, "spatial", cfg), source
    if recipe == "reference_net":
        system = ClipSystem(with_reference_net(load_base(tiny_folder)), cfg, ("dynamics_adapter",))
        system.running["reference_net"] = system.parts.dynamics_adapter
        return system, source
    system = ClipSystem(with_image_prompt(load_base(tiny_folder), None, 4), cfg, ("image_prompt", "image_encoder"))
    freeze_unread(system.parts.image_encoder)
    return system, source


def _album() -> AlbumSource:
    return AlbumSource(draw_album(World(size_wh=(32, 48), framings={"full": 1.0}), 0, 5), frames=2, seed=0)


@pytest.mark.parametrize("recipe", ["motion_lora", "character_lora", "reference_net", "ip_adapter"])
def test_loss_falls_on_a_fixed_batch_and_every_weight_has_a_gradient(recipe: str, tiny_folder: Path) -> None:
    system, source = system_and_source(recipe, tiny_folder)
    batch = draw_batch(source, [3])
    parameters = [p for p in system.parameters() if p.requires_grad]
    assert {id(p) for part in system.saved.values() for p in part.parameters() if p.requires_grad} == {
        id(p) for p in parameters
    }
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    losses, met = [], [False] * len(parameters)
    for _ in range(30):
        loss = system(batch)["loss"]
        loss.backward()
        losses.append(float(loss.detach()))
        met = [seen or bool(p.grad is not None and p.grad.any()) for seen, p in zip(met, parameters, strict=True)]
        optimizer.step()
        optimizer.zero_grad()
    assert all(met)
    assert losses[-1] < 0.97 * losses[0]
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("kind", [MotionLoraConfig, CharacterLoraConfig, ReferenceNetConfig, IpAdapterConfig])
def test_presets_are_for_their_recipes(kind: Any) -> None:
    name = next(recipe for recipe, config in RECIPES.items() if config is kind)
    assert load_config(kind, f"train/{name}").steps > 0


def test_unknown_keys_name_near_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "motion_lora", "--out", str(tmp_path / "x"), "--set", "rnak=3"]) == 2
    assert "did you mean rank?" in capsys.readouterr().err
    assert main(["train", "reference_net", "--out", str(tmp_path / "x"), "--set", "trains=[image_prompt]"]) == 2
    assert "reference_net" in capsys.readouterr().err


def test_clips_start_as_the_base_has_them(tiny_folder: Path, tmp_path: Path) -> None:
    parts = load_base(tiny_folder)
    index = json.loads((tiny_folder / "model_index.json").read_text())
    assert started_as_base(MotionLoraConfig(), parts).shared_noise == index["shared_noise"]
    changed = load_base(tiny_folder)
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "shared_noise": True, "start_keep": 1.0}))
    object.__setattr__(changed, "folder", tmp_path)
    assert started_as_base(MotionLoraConfig(), changed).shared_noise
    assert started_as_base(MotionLoraConfig(), changed).start_keep == 1.0
    assert not started_as_base(MotionLoraConfig(shared_noise=False), changed).shared_noise


def test_an_image_encoder_that_cannot_be_read_is_one_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "ip_adapter", "--set", f"base={tiny_folder}", "--out", str(tmp_path / "x")]
    assert main([*command, "--set", f"image_encoder={tmp_path / 'none'}"]) == 2
    message = capsys.readouterr().err
    assert "wanted a folder with config.json" in message
    assert message.count("\n") == 1
