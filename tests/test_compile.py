"""`--compile` and `--cuda-graphs`: the same numbers, the same keys, and a plain refusal where they cannot be."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from animate_inputs import make_driver, make_photo
from diffusers.models.attention import BasicTransformerBlock
from small_models import randomised, small_unet
from test_memory_plan import run
from tiny_models import tiny_pipeline
from torch import Tensor

from xdyna import DynamicsAdapter, XDynaPipeline
from xdyna.attention import FrameLayout, spatial_sites
from xdyna.cli import main
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.infer.animate import AnimateJob, animate
from xdyna.infer.engine import compiled, graphs
from xdyna.infer.engine.compiled import check_compiler, check_offload, compile_blocks, compiling, release_blocks
from xdyna.infer.engine.fit import place
from xdyna.infer.engine.graphs import GraphedUNet, check_graphs, check_graphs_fit, graphed
from xdyna.infer.engine.halves import HalvesApart
from xdyna.infer.engine.plan import Plan
from xdyna.infer.engine.predict import ExactPredictor

CPU = torch.device("cpu")
CXX = os.environ.get("CXX", "g++")
needs_compiler = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler ({CXX})")


def blocks_of(pipe: Any) -> list[BasicTransformerBlock]:
    nets = [net for net in (pipe.unet, pipe.pose_controlnet, pipe.face_controlnet) if net is not None]
    return [module for net in nets for module in net.modules() if isinstance(module, BasicTransformerBlock)]


def one_block() -> tuple[Any, Callable[[], list[Tensor]]]:
    """A pipeline of a spatial block with a Dynamics-Adapter and a temporal one, and what runs both."""
    unet = small_unet()
    randomised(DynamicsAdapter.from_unet(unet), 3).attach(unet)
    spatial = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    temporal = unet.down_blocks[0].motion_modules[0].transformer_blocks[0]
    generator = torch.Generator().manual_seed(0)
    frames, text = torch.randn(3, 20, 32, generator=generator), torch.randn(1, 4, 16, generator=generator)
    pixels = torch.randn(20, 2, 32, generator=generator)
    layout = {"frames": FrameLayout(1, 2), "reference_cache": None, "record": None}

    @torch.no_grad()
    def both() -> list[Tensor]:
        return [spatial(frames, encoder_hidden_states=text, cross_attention_kwargs=layout), temporal(pixels)]

    parts = SimpleNamespace(unet=torch.nn.ModuleList([spatial, temporal]), pose_controlnet=None, face_controlnet=None)
    return parts, both


@pytest.mark.slow
@needs_compiler
def test_compiled_blocks_give_the_same_numbers() -> None:
    """By torch's own compiler, in C++."""
    parts, both = one_block()
    wanted = both()
    compile_blocks(parts)
    before = compiled.seconds_spent()
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(both(), wanted, strict=True))
    assert compiled.seconds_spent() > before


def test_blocks_are_traced_whole_and_compiled_once_a_shape() -> None:
    """What a compiler is given: the trace of a block is one piece and computes what the block does."""
    parts, both = one_block()
    wanted, pieces = both(), []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        pieces.append(graph)
        return graph.forward

    compile_blocks(parts, backend)
    for _ in range(2):
        assert all((a - b).abs().max() < 1e-6 for a, b in zip(both(), wanted, strict=True))
        assert len(pieces) == 2
    release_blocks(parts)
    assert all(torch.equal(a, b) for a, b in zip(both(), wanted, strict=True))


def test_every_transformer_block_is_compiled_and_no_key_changes() -> None:
    pipe = tiny_pipeline()
    keys = list(pipe.unet.state_dict())
    compile_blocks(pipe)
    assert all(block._compiled_call_impl is not None for block in blocks_of(pipe))
    assert len(blocks_of(pipe)) > len(spatial_sites(pipe.unet, "attn1"))  # motion modules and ControlNets, too
    assert list(pipe.unet.state_dict()) == keys
    kept = [block._compiled_call_impl for block in blocks_of(pipe)]
    compile_blocks(pipe)  # of a later job
    assert [block._compiled_call_impl for block in blocks_of(pipe)] == kept
    # Where memory runs out so far that layers wait on the host, nothing is compiled any more.
    place(pipe, CPU, Plan("cpu", "float32", offload="sequential"))
    assert all(block._compiled_call_impl is None for block in blocks_of(pipe))


def test_what_cannot_be_compiled_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_offload(Plan("cuda", "float16", offload="model"))
    with pytest.raises(UserError, match="--compile: idle layers must wait on the host"):
        check_offload(Plan("cuda", "float16", offload="sequential"))
    with pytest.raises(UserError, match="--compile: works on cpu and cuda, got mps"):
        check_compiler(torch.device("mps"))
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--compile: on a GPU it wants the package triton"):
        check_compiler(torch.device("cuda"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"--compile: wants a C\+\+ compiler, found no no-such-compiler"):
        check_compiler(CPU)


def test_a_compiler_that_fails_is_one_line() -> None:
    parts, both = one_block()

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        raise RuntimeError("internal compiler error\nand a long report")

    def predictor(*args: Any, **settings: Any) -> Tensor:
        return both()[0]

    compile_blocks(parts, backend)
    with pytest.raises(UserError, match=r"--compile: torch could not compile a block: .*leave it out") as told:
        compiling(predictor)(None)  # type: ignore[arg-type, call-arg]
    assert "\n" not in str(told.value)


class Recorder:
    """In CUDA's place: runs a function again on the same memory, into the same memory, as a graph does."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        self.recorded += 1
        out = torch.full_like(function(), float("nan"))  # recording computes nothing

        def replay() -> None:
            self.replayed += 1
            out.copy_(function())

        return replay, out


@pytest.mark.parametrize("apart", [False, True])
def test_graphs_read_each_call_s_inputs_and_keep_no_result(apart: bool) -> None:
    unet: Any = small_unet(pool_group_norm=False)
    randomised(DynamicsAdapter.from_unet(unet), 3).attach(unet)
    if apart:
        unet = HalvesApart(unet)
    recorder, recorded = Recorder(), {}
    generator = torch.Generator().manual_seed(0)

    def inputs(frames: int) -> tuple[Tensor, ...]:
        return torch.randn(1, 4, frames, 8, 8, generator=generator), torch.randn(2, 4, 16, generator=generator)

    results = []
    with torch.no_grad():
        for frames, step in ((4, 900), (4, 500), (3, 500), (4, 100)):
            sample, text = inputs(frames)
            made = GraphedUNet(unet, recorded, recorder)(sample, torch.tensor(step), text).sample
            results.append((made, unet(sample, step, text).sample))
        sample, text = inputs(3)
        for step in (700, 300):
            cache = unet.encode_reference(sample[:, :, 0], step, text)
            made = GraphedUNet(unet, recorded, recorder)(sample, step, text, reference_cache=cache).sample
            results.append((made, unet(sample, step, text, reference_cache=cache).sample))
        record: Any = {}
        GraphedUNet(unet, recorded, recorder)(sample, 500, text, record=record)
    assert all(torch.equal(made, wanted) for made, wanted in results)  # looked at last: none was written over
    assert (recorder.recorded, recorder.replayed) == (3, 6)  # two lengths, and one with a kept reference
    assert len(record) == len(spatial_sites(unet._unet if apart else unet, "attn1"))


def test_a_clip_through_graphs_is_the_same() -> None:
    pipe, recorder = tiny_pipeline(), Recorder()
    assert torch.equal(run(pipe, graphed(ExactPredictor(), recorder)), run(pipe, ExactPredictor()))
    assert recorder.recorded == 1
    assert recorder.replayed > 3


def test_graphs_are_given_up_where_memory_runs_out() -> None:
    def out_of_memory(function: Callable[[], Tensor]) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    unet, asked = small_unet(), []

    def inner(called: Any, sample: Tensor, text: Tensor) -> Tensor:
        asked.append(type(called))
        return called(sample, 500, text).sample  # type: ignore[no-any-return]

    predictor: Any = graphed(inner, out_of_memory)  # type: ignore[arg-type]
    sample, text = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 4, 16)
    with pytest.raises(torch.OutOfMemoryError):
        predictor(unet, sample, text)
    assert predictor(unet, sample, text).shape == sample.shape
    assert asked == [GraphedUNet, type(unet)]


def test_graphs_are_refused_where_they_cannot_be() -> None:
    gpu = torch.device("cuda")
    check_graphs(gpu, AnimateConfig(fast={"guidance_to": 0.5, "residuals_every": 2}))
    with pytest.raises(UserError, match="--cuda-graphs: are a GPU's, wanted --device cuda, got cpu"):
        check_graphs(CPU, AnimateConfig())
    for fast in ({"reuse_every": 3}, {"merge_tokens": 0.5}):
        with pytest.raises(UserError, match=f"--cuda-graphs: does not go with fast.{next(iter(fast))}"):
            check_graphs(gpu, AnimateConfig(fast=fast))
    check_graphs_fit(Plan("cuda", "float16"))
    with pytest.raises(UserError, match="--cuda-graphs: weights must wait on the host"):
        check_graphs_fit(Plan("cuda", "float16", offload="model"))


def test_a_job_compiles_and_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole way from the settings: with stand-ins for compiler and GPU the result is the plain one, to the byte."""
    photo, driver = make_photo(tmp_path / "photo.png"), make_driver(tmp_path / "driver.mp4", 3)
    tiny_pipeline().save_pretrained(tmp_path / "model")
    settings = {"size": "32x48", "steps": 2, "guidance": 2.0, "window": 2, "overlap": 1, "frames": 3}
    job = AnimateJob(photo, driver, tmp_path / "plain.gif", AnimateConfig(model=str(tmp_path / "model"), **settings))
    fast = AnimateConfig.model_validate({**dict(job.config), "compile": True, "cuda_graphs": True})
    animate(job)
    traced, recorder = [], Recorder()

    def stand_in(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        traced.append(graph)
        return graph.forward

    def compile_by_stand_in(pipe: XDynaPipeline) -> None:
        first = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0]  # tracing all takes its time
        compile_blocks(SimpleNamespace(unet=first, pose_controlnet=None, face_controlnet=None), stand_in)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "check_graphs", lambda device, config: None)
    monkeypatch.setattr(graphs, "graphed", partial(graphed, capture=recorder))
    monkeypatch.setattr(compiled, "compile_blocks", compile_by_stand_in)
    with caplog.at_level(logging.INFO, "xdyna"):
        animate(replace(job, output=tmp_path / "fast.gif", config=fast))
    assert (tmp_path / "fast.gif").read_bytes() == (tmp_path / "plain.gif").read_bytes()
    assert recorder.recorded == 1
    assert "compile: 1 blocks" in caplog.text


def test_the_command_refuses_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, driver = make_photo(tmp_path / "photo.png"), make_driver(tmp_path / "driver.mp4", 3)
    job = ["animate", "--ref", str(photo), "--pose-video", str(driver), "-o", str(tmp_path / "out.gif")]
    job += ["--model", "tiny", "--device", "cpu"]
    assert main([*job, "--cuda-graphs"]) == 2
    assert "--cuda-graphs: are a GPU's" in capsys.readouterr().err
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main([*job, "--compile"]) == 2
    line = capsys.readouterr().err
    assert "--compile: wants a C++ compiler, found no no-such-compiler" in line
    assert line.count("\n") == 1
