"""Weights in 8 bits: what is turned, what it costs, and what is refused. Most of it wants torchao (extra `quant`)."""

import importlib.util
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from animate_inputs import make_driver, make_photo
from safetensors.torch import save_file
from tiny_models import tiny_inputs, tiny_pipeline
from torch import Tensor, nn

from xdyna import XDynaPipeline
from xdyna.cli import main
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.infer.animate import AnimateJob
from xdyna.infer.engine import quantize as quantize_module
from xdyna.infer.engine.fast import FastPredictor
from xdyna.infer.engine.fit import place
from xdyna.infer.engine.memory import Shapes
from xdyna.infer.engine.plan import Plan
from xdyna.infer.engine.predict import ExactPredictor
from xdyna.infer.engine.quantize import check_quantize, quantizable, quantize_pipeline, stored_bytes
from xdyna.infer.session import Session

CPU = torch.device("cpu")
needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed (pip install 'xdyna[quant]')"
)


def run(pipeline: XDynaPipeline, predictor: Any, **settings: Any) -> Tensor:
    """Final latents of a short call."""
    defaults = {"num_inference_steps": 2, "output_type": "latent", "window": 4, "overlap": 2, "guidance_scale": 2.0}
    generator = torch.Generator().manual_seed(0)
    return pipeline(**{**tiny_inputs(4), **defaults, **settings}, generator=generator, predictor=predictor).frames  # type: ignore[no-any-return]


def off(a: Tensor, b: Tensor) -> float:
    """Error of `a` against `b`, as a share of its spread."""
    return float((a - b).pow(2).mean().sqrt() / b.std())


# --- refusals, with or without torchao --------------------------------------------------------------------------------


def test_without_torchao_the_extra_is_named(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("torchao.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    make_photo(tmp_path / "photo.png")
    make_driver(tmp_path / "dance.mp4", 2)
    base = ["animate", "--model", str(tiny_folder), "--ref", f"{tmp_path}/photo.png", "-o", f"{tmp_path}/out.mp4"]
    base += ["--pose-video", f"{tmp_path}/dance.mp4", "--frames", "1"]
    assert main([*base, "--quantize", "int8"]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "quantize" in text]
    assert "--quantize int8: torchao is not installed: pip install 'xdyna[quant]'" in line
    assert main([*base, "--quantize", "int4"]) == 2
    assert "quantize" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_what_the_device_lacks_is_refused_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(weight: Tensor) -> Tensor:
        raise RuntimeError("Float8_e4m3fn is not supported here\nand more")

    monkeypatch.setattr(quantize_module, "_store", lambda kind: lacking)
    with pytest.raises(
        UserError, match=r"--quantize fp8: does not run on cpu in float16 .*\(Float8_e4m3fn is not supp"
    ):
        check_quantize("fp8", CPU, torch.float16)


# --- with torchao -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return run(tiny_pipeline(text=True), ExactPredictor())


@needs_torchao
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.05), ("fp8", 0.2)])
def test_bytes_and_error(kind: Any, most: float, exact: Tensor) -> None:
    pipeline = tiny_pipeline(text=True)
    layers = [layer for part in (pipeline.unet, pipeline.pose_controlnet) for layer in quantizable(part)]
    assert {type(layer) for layer in layers} == {nn.Linear, nn.Conv2d}
    check_quantize(kind, CPU, torch.float32)
    done = quantize_pipeline(pipeline, kind)
    assert done.bytes_after < 0.4 * done.bytes_before
    assert f"layers in {kind}" in done.line()
    assert all(stored_bytes(layer.weight) < 0.4 * 4 * layer.weight.numel() for layer in layers)
    for name in ("conv_in", "conv_out"):
        assert type(getattr(pipeline.unet, name).weight) is nn.Parameter
    assert type(pipeline.pose_controlnet.controlnet_mid_block.weight) is nn.Parameter
    near = run(pipeline, ExactPredictor())
    assert 1e-5 < off(near, exact) < most
    assert torch.equal(near, run(pipeline, ExactPredictor()))
    # With all else that leaves work out.
    fast = FastPredictor(reuse_every=2, residuals_every=2, guidance_to=0.5, merge_tokens=0.25)
    assert off(run(pipeline, fast), exact) < 0.5


@needs_torchao
def test_the_plan_counts_what_is_stored() -> None:
    before = Shapes(tiny_pipeline())
    pipeline = tiny_pipeline()
    done = quantize_pipeline(pipeline, "int8")
    after = Shapes(pipeline)
    saved = sum(before.weights.values()) - sum(after.weights.values())
    assert saved == done.bytes_before - done.bytes_after
    with pytest.raises(UserError, match="layers that wait on the host one by one"):
        place(pipeline, CPU, Plan("cuda", "float32", offload="sequential"))


@needs_torchao
def test_a_session_keeps_exact_and_turned_models_apart_and_loras_as_they_are(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_photo(tmp_path / "photo.png")
    make_driver(tmp_path / "dance.mp4", 2)
    site = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    source = torch.Generator().manual_seed(0)
    lora = {
        f"unet.{site}.lora_{side}.weight": torch.randn(*shape, generator=source)
        for side, shape in (("A", (2, 32)), ("B", (32, 2)))
    }
    save_file(lora, tmp_path / "lora.safetensors")
    config = AnimateConfig(model=str(tiny_folder), frames=1, steps=1)
    job = AnimateJob(tmp_path / "photo.png", tmp_path / "dance.mp4", tmp_path / "out.gif", config)
    made = []
    with Session() as session, caplog.at_level(logging.INFO, logger="xdyna"):
        for settings in (
            {},
            {"quantize": "int8"},
            {"quantize": "int8", "lora": str(tmp_path / "lora.safetensors")},
            {},
        ):
            values = AnimateConfig.model_validate({**dict(config), **settings})
            session.run(replace(job, config=values))
            made.append(job.output.read_bytes())
            pipe = session._loaded.pipe if session._loaded else None
            if "lora" in settings:
                assert pipe is not None
                layer = pipe.unet.get_submodule(site)
                assert type(layer.lora_A["lora0"].weight) is nn.Parameter
                assert hasattr(layer.base_layer.weight, "qdata")
    assert sum("quantize: " in record.message for record in caplog.records) == 2
    assert made[0] == made[3]
    assert len(set(made)) == 3
