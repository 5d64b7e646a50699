"""Two processes over gloo equal one; FSDP trains, saves and goes on; the shipped accelerate configurations are read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loop_processes import Job, do, environment, launch
from safetensors.torch import load_file

pytestmark = pytest.mark.timeout(1200)  # several new processes, which other work on the machine holds up

SGD = {"steps": 10, "optimizer": "sgd", "lr": 0.05, "save_every": 100}
ADAM = {"steps": 50, "lr": 3e-3, "ema": 0.9, "save_every": 20, "validate_clips": 4}


def found(job: Job, rank: int = 0) -> dict[str, Any]:
    return dict(torch.load(f"{job['out']}.{rank}.pt", weights_only=True))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model/net.safetensors")


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], rel: float) -> None:
    """Largest difference within `rel` of the largest value, per tensor."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert (value - other[key]).abs().max() <= rel * value.abs().max(), key


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """One process, a batch of 4."""
    folder = tmp_path_factory.mktemp("single")
    runs = {}
    for name, settings in (("sgd", SGD), ("adam", ADAM)):
        out = folder / name
        runs[name] = (out, do({"out": out, "settings": {**settings, "batch": 4}}))
    return runs


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Two processes, a batch of 2 each (or of 1 in two passes)."""
    folder = tmp_path_factory.mktemp("double")
    jobs: dict[str, Job] = {
        "sgd": {"settings": {**SGD, "batch": 2}},
        "adam": {"settings": {**ADAM, "batch": 1, "accumulate": 2}},
        "half": {"settings": {**ADAM, "batch": 2, "steps": 30}},
        "term": {"settings": {**SGD, "batch": 2}, "term": 3},
        "nan": {"settings": {**SGD, "batch": 2}, "bad": 7},
    }
    for name, job in jobs.items():
        job["out"] = str(folder / name)
    jobs["rest"] = {**jobs["half"], "settings": {**ADAM, "batch": 2}, "resume": True}
    launch(list(jobs.values()), folder, processes=2)
    return jobs


def test_first_gradients_of_two_processes_equal_those_of_one(single: Any, double: dict[str, Job]) -> None:
    assert_close(single["sgd"][1]["gradients"], found(double["sgd"])["gradients"], 1e-5)


def test_parameters_after_ten_sgd_steps_are_equal(single: Any, double: dict[str, Job]) -> None:
    assert_close(weights(single["sgd"][0]), weights(Path(double["sgd"]["out"])), 1e-5)


def test_adamw_loss_curves_over_fifty_steps_are_equal(single: Any, double: dict[str, Job]) -> None:
    one, two = single["adam"][1]["losses"], found(double["adam"])["losses"]
    assert len(one) == len(two) == 50
    assert two == pytest.approx(one, rel=1e-3)


def test_two_processes_go_on_where_they_stopped(single: Any, double: dict[str, Job]) -> None:
    rest = found(double["rest"])["losses"]
    assert len(rest) == 50
    assert rest == pytest.approx(single["adam"][1]["losses"], rel=1e-3)
    assert_close(weights(single["adam"][0]), weights(Path(double["rest"]["out"])), 1e-2)


def test_sigterm_to_one_process_stops_both_with_a_checkpoint(double: dict[str, Job]) -> None:
    assert len(found(double["term"])["losses"]) == 4
    assert [path.name for path in (Path(double["term"]["out"]) / "checkpoints").iterdir()] == ["step-000004"]
    assert not (Path(double["term"]["out"]) / "model").exists()


def test_a_nan_in_one_process_stops_both(double: dict[str, Job]) -> None:
    for rank in range(2):
        refused = found(double["nan"], rank)["refused"]
        assert "the loss became nan at step 1 (clips: noise 6, noise 7)" in refused


def test_fsdp_trains_saves_and_goes_on(single: Any, tmp_path: Path) -> None:
    """Also: a checkpoint of sharded weights is read by one process, and the other way round."""
    half = {**ADAM, "steps": 30}
    whole: Job = {"out": str(tmp_path / "whole"), "settings": {**ADAM, "batch": 2}}
    first: Job = {"out": str(tmp_path / "split"), "settings": {**half, "batch": 2}}
    rest: Job = {**whole, "out": first["out"], "resume": True}
    other: Job = {"out": str(tmp_path / "one"), "settings": {**ADAM, "batch": 2}, "resume": True}
    do({"out": tmp_path / "one", "settings": {**half, "batch": 4}})
    launch([whole, first, rest, other], tmp_path, processes=2, env=environment("fsdp"))
    assert_close(single["adam"][1]["gradients"], found(whole)["gradients"], 1e-5)
    for job in (whole, rest, other):
        assert found(job)["losses"] == pytest.approx(single["adam"][1]["losses"], rel=1e-3)
        assert found(job)["frozen_same"]
    kept = load_file(tmp_path / "whole/checkpoints/step-000050/net.safetensors")
    again = load_file(tmp_path / "split/checkpoints/step-000050/net.safetensors")
    assert all(torch.equal(value, again[key]) for key, value in kept.items())
    assert weights(tmp_path / "whole").keys() == weights(single["adam"][0]).keys()


def test_deepspeed_trains_saves_and_goes_on(single: Any, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: its configuration is only read")
    whole: Job = {"out": str(tmp_path / "whole"), "settings": {**ADAM, "batch": 2}}
    first: Job = {"out": str(tmp_path / "split"), "settings": {**ADAM, "steps": 30, "batch": 2}}
    rest: Job = {**whole, "out": first["out"], "resume": True}
    parts: Job = {"out": str(tmp_path / "parts"), "settings": {**ADAM, "batch": 1, "accumulate": 2}}
    launch([whole, first], tmp_path, processes=2, env=environment("deepspeed"))
    launch([rest], tmp_path, processes=2, env=environment("deepspeed"))
    launch([parts], tmp_path, processes=2, env=environment("deepspeed"))
    for job in (whole, rest, parts):
        assert found(job)["losses"] == pytest.approx(single["adam"][1]["losses"], rel=1e-3)
        assert found(job)["frozen_same"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("one_gpu", {}),
        ("ddp", {}),
        ("fsdp", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}),
        ("deepspeed", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
    ],
)
def test_shipped_configurations_are_read_by_accelerate(
    name: str, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands import launch as launcher

    # Without DeepSpeed, accelerate refuses to look further; what the file says is read all the same.
    monkeypatch.setattr(launcher, "is_deepspeed_available", lambda: True)
    made = environment(name)
    assert {key: made.get(key) for key in wanted} == wanted
