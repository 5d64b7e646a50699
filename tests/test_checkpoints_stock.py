"""Text encoder, tokenizer and image encoder, and the commands that convert and fetch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from local_hub import LocalHub
from official_files import SETTINGS, small_resampler, small_unet, write_official
from safetensors.torch import load_file, save_file
from tiny_models import tiny_image_encoder, tiny_inputs, tiny_text_encoder, tiny_tokenizer

from xdyna.checkpoints import OfficialFiles, convert_official
from xdyna.checkpoints.layout import FACE_FILE, IP_ADAPTER_FILE, POSE_FILE, UNET_FILE
from xdyna.cli import main
from xdyna.errors import UserError
from xdyna.hub import HuggingFaceHub
from xdyna.models import converted_folder, known_models, pulled_folder


@pytest.fixture
def official(tmp_path: Path) -> OfficialFiles:
    """Small official files with everything a pipeline needs."""
    files = write_official(tmp_path / "official")
    assert files.sd15 is not None
    with_text(files.sd15)
    encoder = tmp_path / "official" / "image_encoder"
    tiny_image_encoder().save_pretrained(encoder)
    return replace(files, image_encoder=encoder)


def with_text(sd15: Path) -> None:
    """Text encoder as SD1.5 has it: names with a prefix, and a buffer that is not needed; and a tokenizer."""
    tiny_text_encoder().save_pretrained(sd15 / "text_encoder")
    path = sd15 / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(path).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, path, metadata={"format": "pt"})
    tiny_tokenizer().save_pretrained(sd15 / "tokenizer")


def test_complete_pipeline_runs(official: OfficialFiles, tmp_path: Path) -> None:
    from xdyna.pipeline import XDynaPipeline

    report = convert_official(official, tmp_path / "out", settings=SETTINGS)
    assert report.warnings == []
    pipe = XDynaPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    text = tiny_text_encoder()
    for key, value in text.state_dict().items():
        assert torch.equal(pipe.text_encoder.state_dict()[key], value), key
    image = tiny_image_encoder()
    for key, value in image.state_dict().items():
        assert torch.equal(pipe.image_encoder.state_dict()[key], value), key
    side = image.config.image_size
    assert pipe.feature_extractor.crop_size["height"] == side
    out = pipe(**{**tiny_inputs(), "num_inference_steps": 1, "prompt": "a"}, output_type="np").frames
    assert out.shape[1] == 5


def test_text_encoder_mistakes(official: OfficialFiles, tmp_path: Path) -> None:
    assert official.sd15 is not None
    folder = official.sd15 / "text_encoder"
    weights = load_file(folder / "model.safetensors")

    def message(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(UserError) as error:
            convert_official(official, tmp_path / "out", settings=SETTINGS)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    name = "text_model.final_layer_norm.weight"
    assert "lacks final_layer_norm.weight" in message({k: v for k, v in weights.items() if k != name})
    assert "has unknown extra" in message({**weights, "extra": torch.ones(1)})
    assert "final_layer_norm.weight has shape [3]" in message({**weights, name: torch.ones(3)})
    assert f"{name} holds" in message({**weights, name: weights[name] * float("nan")})
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"wanted config\.json and model\.safetensors"):
        convert_official(official, tmp_path / "out", settings=SETTINGS)


def test_configs_that_are_none(official: OfficialFiles, tmp_path: Path) -> None:
    assert official.sd15 is not None
    config = official.sd15 / "vae" / "config.json"
    for text, words in (
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"up_block_types": ["Nothing"]}', "no VAE"),
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=words) as error:
            convert_official(official, tmp_path / "out", settings=SETTINGS)
        assert str(error.value).startswith(f"{config}: ")


# --- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def options(files: OfficialFiles) -> list[str]:
    return [word for name, path in files.given().items() for word in (f"--{name.replace('_', '-')}", str(path))]


def test_convert_there_and_back(
    official: OfficialFiles, settings_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    assert main(["convert", *options(official), "-o", str(out), "--config", str(settings_file), "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["folder"] == str(out)
    assert set(report["tensors"]) >= {"unet", "dynamics_adapter", "image_prompt", "text_encoder", "image_encoder"}
    assert report["warnings"] == []
    assert printed.err == ""

    assert main(["convert", str(out), "--to", "official", "-o", str(back)]) == 0
    for path in (UNET_FILE, POSE_FILE, FACE_FILE, IP_ADAPTER_FILE):
        assert (back / path).is_file()
    state = torch.load(back / UNET_FILE, weights_only=True)["state_dict"]
    assert all(torch.equal(state[key], value) for key, value in small_unet().items())

    # The folder that was written back needs no options.
    again = tmp_path / "again"
    command = ["convert", str(back), "-o", str(again), "--config", str(settings_file)]
    assert main(command) == 0
    assert (again / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == (
        out / "unet" / "diffusion_pytorch_model.safetensors"
    ).read_bytes()
    capsys.readouterr()
    assert main(command) == 2
    assert "already there and not empty" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert main([*command, "--overwrite", "--dtype", "fp16"]) == 0
    half = load_file(again / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}


def test_convert_mistakes_are_one_line(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("unet: {norm_num_group: 8}")
    (tmp_path / "a.ckpt").write_bytes(b"text")
    for arguments, words in (
        ([], "`xdyna models pull x-dyna`"),
        (["--to", "nowhere"], "--to nowhere: wanted pipeline or official"),
        ([str(tmp_path / "gone")], "no such folder"),
        (["--unet", str(tmp_path / "a.ckpt"), "--config", str(tmp_path / "bad.yaml")], "did you mean norm_num_groups"),
        (["--unet", str(tmp_path / "a.ckpt"), "--set", "unett.x=1"], "unknown key 'unett'"),
        (["--unet", str(tmp_path / "a.ckpt")], "a.ckpt: not a checkpoint, or damaged"),
        (["--to", "official"], "--output is missing"),
        (["--to", "official", "--unet", "a", "-o", "b"], "--unet names a file to read"),
        (["--to", "official", "-o", str(tmp_path / "b")], "no model_index.json"),
    ):
        assert main(["convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


@pytest.fixture
def hub(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for model in known_models().values():
        for file in model.files:
            path = tmp_path / "hub" / file.repo / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.path * 100)
    with LocalHub(tmp_path / "hub").running() as running:
        monkeypatch.setattr("xdyna.hub.HuggingFaceHub", lambda: HuggingFaceHub(running.url))
        yield running


def test_list_pull_and_verify(hub: LocalHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    assert "x-dyna: X-Dyna as its authors released it" in (printed := capsys.readouterr().out)
    assert "[not pulled]" in printed
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5: CreativeML OpenRAIL-M" in printed
    assert main(["models", "verify", "x-dyna"]) == 2
    assert capsys.readouterr().err == (
        "xdyna: error: x-dyna: nothing is here to verify; wanted `xdyna models pull x-dyna` first\n"
    )
    assert main(["models", "pull", "x-dyna", "--no-convert"]) == 0
    assert f"x-dyna: complete in {pulled_folder('x-dyna')}" in capsys.readouterr().out
    assert main(["models", "list", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["models"][0]
    assert row["state"] == "pulled"
    assert row["sources"][0]["commit"] == hub.commit("Boese0601/X-Dyna")
    assert row["converted"] is None
    assert main(["models", "verify"]) == 0
    target = pulled_folder("x-dyna") / UNET_FILE
    target.write_text("other")
    capsys.readouterr()
    assert main(["models", "verify", "x-dyna"]) == 2
    assert f"not as pulled: {UNET_FILE} changed; move what is wrong away" in capsys.readouterr().err


def test_pull_converts(hub: LocalHub, official: OfficialFiles, capsys: pytest.CaptureFixture[str]) -> None:
    """What was pulled goes to the converter, and its result to where `--model x-dyna` looks."""
    # The hub's files are no checkpoints yet: the converter refuses the first.
    assert main(["models", "pull", "x-dyna"]) == 2
    assert f"{pulled_folder('x-dyna') / UNET_FILE}: not a checkpoint" in capsys.readouterr().err
    assert not converted_folder("x-dyna").exists()

    fill_hub(hub.folder, official)
    assert main(["models", "pull", "x-dyna", "--update"]) == 0
    assert "every one accounted for" in capsys.readouterr().out
    assert (converted_folder("x-dyna") / "model_index.json").is_file()
    assert main(["models", "list"]) == 0
    assert "[pulled, converted]" in capsys.readouterr().out
    assert main(["models", "pull", "x-dyna"]) == 0
    assert "converted before, left as it is" in capsys.readouterr().out


def fill_hub(folder: Path, files: OfficialFiles) -> None:
    """Small official files at the places where the hub has the real ones, with the official heads and groups."""
    assert files.unet
    assert files.pose_controlnet
    assert files.face_controlnet
    assert files.image_encoder
    assert files.sd15
    repo = folder / "Boese0601/X-Dyna"
    for path, target in (
        (files.unet, UNET_FILE),
        (files.pose_controlnet, POSE_FILE),
        (files.face_controlnet, FACE_FILE),
    ):
        shutil.copyfile(path, repo / target)
    adapter = {"image_proj": small_resampler({"dim_head": 64, "heads": 1}), "ip_adapter": {}}
    torch.save(adapter, folder / "h94/IP-Adapter/models/ip-adapter-plus_sd15.bin")
    shutil.copytree(files.image_encoder, folder / "h94/IP-Adapter/models/image_encoder", dirs_exist_ok=True)
    sd15 = folder / "stable-diffusion-v1-5/stable-diffusion-v1-5"
    for part in ("vae", "text_encoder"):
        shutil.copytree(files.sd15 / part, sd15 / part, dirs_exist_ok=True)
    (sd15 / "unet/config.json").write_text(json.dumps({"attention_head_dim": 8, "norm_num_groups": 32}))
    write_vocabulary(sd15 / "tokenizer")


def write_vocabulary(folder: Path) -> None:
    """The tiny tokenizer in the four files in which SD1.5 has its own."""
    (folder / "vocab.json").write_text(json.dumps(tiny_tokenizer().get_vocab()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|startoftext|>"}))
