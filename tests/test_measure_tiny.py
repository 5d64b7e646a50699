"""The script that measures a model: on an untrained one it runs through, fails the bars, and says so."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def load_script() -> ModuleType:
    spec = spec_from_file_location("measure_tiny", ROOT / "scripts" / "measure_tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_an_untrained_model_fails(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script()
    world = tmp_path / "world.yaml"
    world.write_text("world: {size_wh: [48, 72], scenes: [sea, fire], framings: {full: 1}}\n")
    counts = ["--clips", "4", "--bust", "1", "--stops", "1", "--long", "1", "--steps", "1"]
    arguments = [str(tiny_folder), "--without-adapter", str(tiny_folder), "--config", str(world), *counts]
    monkeypatch.setattr(sys, "argv", ["measure_tiny.py", *arguments, "--out", str(tmp_path / "out")])
    monkeypatch.setattr(script, "FRAMES", 8)
    monkeypatch.setattr(script, "LONG_FRAMES", 18)
    script.main()

    report = json.loads((tmp_path / "out" / "bars.json").read_text())
    bars = {bar["name"]: bar for bar in report["bars"]}
    assert bars["PSNR of the figure, dB"]["passed"] is False
    assert bars["PSNR of the figure, dB"]["value"] == pytest.approx(bars["PSNR of the figure, dB"]["beside"]["without"])
    assert bars["motion map, correlation with truth"]["passed"] is False
    assert any(name.startswith("expression: mouth") for name in bars)
    assert bars["[frozen] bars of the living scene that it fails"]["passed"] is True
    assert bars["[noise] bars of the living scene that it fails"]["passed"] is True
    assert len(report["per_clip"]) == 4
    assert "FAIL  PSNR of the figure, dB" in capsys.readouterr().out
    assert (tmp_path / "out" / "sheet.png").is_file()
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 4


def test_a_model_without_adapter_can_stand_beside(tiny_folder: Path, tmp_path: Path) -> None:
    script = load_script()
    pipe = script.XDynaPipeline.from_pretrained(tiny_folder, dynamics_adapter=None)
    pipe.save_pretrained(tmp_path / "without")
    other = script.Model(tmp_path / "without", 1, 1.0)
    assert other.pipe.dynamics_adapter is None
    world = script.World(size_wh=(48, 72), scenes=("fire",), framings={"full": 1.0}, loop_s=1.0)
    assert other.animate(script.build_case(world, 0, 4)).shape == (4, 72, 48, 3)


def test_the_world_loops_whatever_the_preset_says(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text("steps: 3\nworld: {scene_only: 0.5, loop_s: 0, scenes: [fire]}\n")
    world = load_script().read_world(str(path))
    assert (world.loop_s, world.scene_only, world.scenes) == (1.0, 0.0, ("fire",))


def test_scenes_without_a_person_move_in_the_clip_that_stands_still() -> None:
    """The frozen baseline is still; the noise has the truth's frame difference."""
    script = load_script()
    world = script.World(size_wh=(48, 72), scenes=("waterfall",), framings={"full": 1.0}, loop_s=1.0)
    case = script.build_case(world, 0, 6)
    assert np.ptp(script.frozen(case), axis=0).max() == 0
    noise = script.noise_of_equal_energy(case, np.random.default_rng(0)).astype(float)
    truth = case.scene_alone()[1:].astype(float)
    assert np.abs(np.diff(noise, axis=0)).mean() == pytest.approx(np.abs(np.diff(truth, axis=0)).mean(), rel=0.1)
