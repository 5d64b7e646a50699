"""`xdyna bench`: plans that agree, counts that are right, turns, figures, the record and bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_unet
from torch import Tensor

from xdyna.cli import main
from xdyna.configs import load_config
from xdyna.configs.bench import BenchConfig
from xdyna.errors import UserError
from xdyna.infer.bench import bench as bench_module
from xdyna.infer.bench import rounds
from xdyna.infer.bench.bench import Record, bench
from xdyna.infer.bench.figures import Spread, cost, growth, ratio
from xdyna.infer.bench.flops import count_flops, flop_counter, flops_of_steps
from xdyna.infer.bench.models import emptied, empty_model, load_model, write_random_model
from xdyna.infer.bench.plans import Work, make_plan
from xdyna.infer.bench.report import to_markdown, write_record
from xdyna.infer.bench.rounds import Run, Worker, WorkerFailed, turns
from xdyna.infer.bench.stock import stock_unet
from xdyna.infer.bench.worker import Task
from xdyna.pipeline import XDynaPipeline

SIZE_WH = (16, 16)
PLANS = ("official", "diffusers", "freenoise", "ours")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model of random weights."""
    path = tmp_path_factory.mktemp("small")
    write_random_model("small", path, torch.float32)
    return path


@pytest.fixture(scope="module")
def pipe(folder: Path) -> XDynaPipeline:
    return load_model(folder, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def empty() -> XDynaPipeline:
    return emptied(empty_model("small"))


def work(num_frames: int = 18, steps: int = 1, guidance: float = 7.5, schedule: str = "closed") -> Work:
    return Work(num_frames, SIZE_WH, steps, guidance, schedule)


# --- plans -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_official_plan_and_ours_give_the_same_latents(pipe: XDynaPipeline, guidance: float) -> None:
    official, ours = (make_plan(name, pipe, work(guidance=guidance, steps=2)).run() for name in ("official", "ours"))
    assert official.std() > 0.1
    assert (official - ours).abs().max() < 1e-3


def test_official_plan_evaluates_controlnets_in_every_window_for_both_halves(
    pipe: XDynaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = pipe.pose_controlnet.forward

    def counted(sample: Tensor, *args: object, **kwargs: object) -> object:
        rows.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(pipe.pose_controlnet, "forward", counted)
    make_plan("official", pipe, work()).run()
    assert rows == [2 * 16] * len(work().windows())
    assert len(work().windows()) == 2


def test_plain_formulas_give_the_official_plans_latents_and_no_graph(
    pipe: XDynaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It differs from the official plan in the mode alone, by which the UNet chooses its formulas."""
    seen: list[bool] = []
    forward = pipe.unet.forward

    def watched(*args: object, **kwargs: object) -> object:
        seen.append(torch.is_grad_enabled())
        made = forward(*args, **kwargs)
        assert made.sample.grad_fn is None
        return made

    monkeypatch.setattr(pipe.unet, "forward", watched)
    official = make_plan("official", pipe, work()).run()
    plain = make_plan("official-plain", pipe, work()).run()
    assert (official - plain).abs().max() < 1e-4
    assert sorted(set(seen)) == [False, True]


def test_our_own_windows_on_request(empty: XDynaPipeline) -> None:
    windows = [make_plan(name, empty, work(30)).work.windows() for name in ("ours", "ours-open")]
    assert windows[0][-1][-1] == 9  # wraps
    assert windows[1][-1][-1] == 29


def test_stock_unet_runs_our_very_weights() -> None:
    """One frame, norms per frame and nothing attached: then both UNets are the same function."""
    ours = small_unet(pool_group_norm=False, norm_num_groups=16)  # the stock one has one number of groups for all
    stock = stock_unet(ours)
    generator = torch.Generator().manual_seed(0)
    sample, text = torch.randn(1, 4, 1, 8, 8, generator=generator), torch.randn(1, 4, 16, generator=generator)
    with torch.no_grad():
        mine = ours(sample.repeat(1, 1, 2, 1, 1), 10, text).sample[:, :, 1:]
        theirs = stock(sample, 10, text).sample
    assert (mine - theirs).abs().max() < 1e-4
    assert stock.conv_in.weight.data_ptr() == ours.conv_in.weight.data_ptr()


def test_diffusers_plans_denoise_every_frame(pipe: XDynaPipeline) -> None:
    for name in ("diffusers", "freenoise"):
        latents = make_plan(name, pipe, work()).run()
        assert latents.shape == (1, 4, 18, 8, 8)
        assert torch.isfinite(latents).all()


# --- counting ----------------------------------------------------------------------------------------------------


def test_attention_is_counted_on_the_cpu_as_on_the_meta_device() -> None:
    wanted = 2 * 2 * (2 * 4 * 64 * 80 * 32)  # two products of 64 x 80 over 32 channels, 8 heads in all
    for device in ("cpu", "meta"):
        query, key = torch.empty(2, 4, 64, 32, device=device), torch.empty(2, 4, 80, 32, device=device)
        with torch.no_grad(), flop_counter() as counter:
            torch.nn.functional.scaled_dot_product_attention(query, key, key)
        assert counter.get_total_flops() == wanted, device


@pytest.fixture(scope="module")
def counts(empty: XDynaPipeline) -> dict[str, dict[str, int]]:
    return {name: count_flops(make_plan(name, empty, work())) for name in PLANS}


@pytest.mark.parametrize("name", PLANS)
def test_counts_without_values_are_those_of_a_real_run(
    pipe: XDynaPipeline, counts: dict[str, dict[str, int]], name: str
) -> None:
    """So are the parts whose second call is not followed: two windows show them twice."""
    assert counts[name] == count_flops(make_plan(name, pipe, work()))
    assert set(counts[name]) == {"step 0", "decode"}


def test_the_official_plan_costs_more(counts: dict[str, dict[str, int]]) -> None:
    totals = {name: flops_of_steps(count, 1) for name, count in counts.items()}
    assert 1.1 < totals["official"] / totals["ours"] < 2
    assert totals["freenoise"] < totals["diffusers"] < totals["official"]


def test_later_steps_are_counted_as_the_second(empty: XDynaPipeline) -> None:
    def counted(steps: int) -> dict[str, int]:
        return count_flops(make_plan("ours", empty, work(4, steps)))

    three = counted(3)
    assert flops_of_steps(counted(2), 3) == sum(three.values())
    assert three["step 0"] > three["step 1"] == three["step 2"]  # the reference and the maps are encoded in the first


# --- turns and figures -------------------------------------------------------------------------------------------


def test_turns_alternate() -> None:
    order = [plan for _, plan in turns("ABC", 3)]
    assert order == [*"ABC", *"CBA", *"ABC"]
    assert [turn for turn, _ in turns("AB", 2)] == [0, 0, 1, 1]


def run(plan: str, turn: int, seconds: float, num_frames: int = 16) -> Run:
    return Run(plan, num_frames, turn, seconds, 2 * seconds, 500 + turn, 400)


def test_figures_of_runs() -> None:
    official = [run("official", 0, 3.0), run("official", 1, 8.0), run("official", 2, 5.0)]
    ours = [run("ours", 0, 2.0), run("ours", 1, 4.0), run("ours", 2, 4.0)]
    assert cost(official).seconds == Spread(5.0, 3.0, 8.0)
    assert cost(official).cpu_seconds == Spread(10.0, 6.0, 16.0)
    assert (cost(official).peak_bytes, cost(official).working_bytes) == (502, 102)
    assert ratio(official, ours) == Spread(1.5, 1.25, 2.0)
    assert ratio(official, ours[1:]) == Spread(1.625, 1.25, 2.0)


def test_growth_tells_linear_from_flat() -> None:
    line = growth({16: 1 + 16 * 0.5, 48: 1 + 48 * 0.5, 96: 1 + 96 * 0.5})
    assert line is not None
    assert line.per_frame == pytest.approx(0.5)
    assert line.at_zero == pytest.approx(1.0)
    assert line.worst < 1e-9
    flat = growth({16: 7.0, 96: 7.0})
    assert flat is not None
    assert (flat.per_frame, flat.exponent) == (0, 0)
    square = growth({10: 100.0, 20: 400.0, 40: 1600.0})
    assert square is not None
    assert square.exponent == pytest.approx(2)
    assert square.worst > 0.1
    assert growth({16: 1.0}) is None
    assert growth({16: 0.0, 32: 1.0}) is None


# --- processes and the record ------------------------------------------------------------------------------------


def task(folder: Path, plan: str, latents: Path, **others: object) -> Task:
    fields = {"num_frames": 2, "size_wh": SIZE_WH, "steps": 1, "guidance": 1.0, "schedule": "closed"}
    return Task(plan, str(folder), "cpu", "float32", {**fields, **others}, str(latents))


class FailingWorker:
    """In place of a process: `official` cannot start, `diffusers` fails in its second run."""

    resident_bytes = 5

    def __init__(self, task: Task) -> None:
        self.task, self.runs = task, 0

    def __enter__(self) -> FailingWorker:
        return self

    def __exit__(self, *error: object) -> None: ...

    def wait_until_ready(self) -> None:
        if self.task.plan == "official":
            raise WorkerFailed("no memory")

    def run(self) -> dict[str, float]:
        self.runs += 1
        if self.task.plan == "diffusers" and self.runs == 2:
            raise WorkerFailed("no memory in round 2")
        return {"seconds": 1.0, "cpu_seconds": 1.0, "peak_bytes": 9, "finite": self.task.plan != "freenoise"}


def test_plans_that_fail_are_told_of_and_the_others_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rounds, "Worker", FailingWorker)
    seen: list[None] = []
    taken = rounds.take_turns([task(tmp_path, plan, tmp_path) for plan in PLANS], 2, lambda: seen.append(None))
    assert [(r.plan, r.turn) for r in taken.runs] == [("diffusers", 0), ("ours", 0), ("ours", 1)]
    assert taken.failed == {
        "official": "no memory", "diffusers": "no memory in round 2", "freenoise": "its latents are not finite",
    }  # fmt: skip
    assert len(seen) == 2 * 4  # progress gets to its end


def test_a_worker_that_dies_is_told_of(folder: Path, tmp_path: Path) -> None:
    with Worker(task(folder, "ours", tmp_path / "a.npy")) as worker:
        worker._process.kill()
        with pytest.raises(WorkerFailed, match="ended with status -9"):
            worker.wait_until_ready()


def fake_turns(factor: dict[str, float]) -> Callable[..., bench_module.Taken]:
    """In place of processes: seconds in proportion to frames, by plan; `freenoise` always fails."""

    def take(tasks: list[Task], repeats: int, on_run: Callable[[], None]) -> bench_module.Taken:
        taken = bench_module.Taken(failed={t.plan: "out of memory" for t in tasks if t.plan == "freenoise"})
        for turn, plan in turns([t.plan for t in tasks], repeats):
            n = tasks[0].work["num_frames"]
            if plan not in taken.failed:
                taken.runs.append(Run(plan, n, turn, factor[plan] * n, 0.5, 10**9 + n * 10**6, 10**9))
            on_run()
        return taken

    return take


@pytest.fixture(scope="module")
def record(counts: dict[str, dict[str, int]]) -> Record:
    """A record whose times are made up."""

    def counted(plans: Sequence[str], works: Mapping[int, Work], *others: object) -> dict[str, dict[int, Any]]:
        return {plan: {n: {**counts[plan], "total": flops_of_steps(counts[plan], 1)} for n in works} for plan in plans}

    config = load_config(BenchConfig, values={"frames": "2,4", "size": "16x16", "steps": 1, "device": "cpu"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_module, "take_turns", fake_turns({"official": 3.0, "diffusers": 2.0, "ours": 1.5}))
        patch.setattr(bench_module, "_count", counted)
        return bench(config, "xdyna bench --frames 2,4", lambda stage, done, total: None)


def test_the_record_holds_every_figure(record: Record, tmp_path: Path) -> None:
    markdown, data = write_record(record, tmp_path / "new")
    page, found = markdown.read_text(encoding="utf-8"), json.loads(data.read_text(encoding="utf-8"))
    for wanted in ("`xdyna bench --frames 2,4`", "GFLOP", "out of memory", "2 (2 to 2)", "1.5 s a frame", "without"):
        assert wanted in page, page
    assert len(found["runs"]) == 2 * 2 * 3
    assert found["times_ours"]["official"]["4"]["seconds"]["median"] == pytest.approx(2.0)
    assert found["times_ours"]["official"]["4"]["flops"] > 1
    assert found["growth"]["ours"]["seconds"]["exponent"] == pytest.approx(1)
    assert found["machine"]["versions"]["torch"] == torch.__version__
    assert re.match(r"\d{4}-\d\d-\d\d-small-16x16-cpu$", markdown.stem)


def test_older_records_stay(record: Record, tmp_path: Path) -> None:
    first, second = write_record(record, tmp_path), write_record(record, tmp_path)
    assert second[0].stem == f"{first[0].stem}-2"
    assert to_markdown(record) == first[0].read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Everything for real: two plans, two rounds, each plan in its process."""
    options = ["--frames", "3", "--size", "16x16", "--steps", "1", "--plans", "official,ours", "--device", "cpu"]
    assert main(["bench", *options, "--json", "--out", str(tmp_path)]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [(r["plan"], r["turn"]) for r in found["runs"]] == [
        ("official", 0), ("ours", 0), ("ours", 1), ("official", 1),
    ]  # fmt: skip
    assert found["latents_apart"]["3"] < 1e-3
    assert all(r["peak_bytes"] >= r["resident_bytes"] > 50e6 for r in found["runs"])
    assert all(r["seconds"] > 0 < r["cpu_seconds"] for r in found["runs"])
    assert Path(found["markdown"]).is_file()


def test_counting_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--frames", "3", "--plans", "ours", "--flops-only", "--out", str(tmp_path), "--model", "tiny"]
    assert main(["bench", *options]) == 0
    page = next(tmp_path.glob("*-tiny-*-flops.md")).read_text(encoding="utf-8")
    assert "Operations" in page
    assert "Peak memory" not in page


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--frames", "16,x"], "--frames"),
        (["--frames", "0"], "--frames"),
        (["--frames", ""], "--frames"),
        (["--frames", "16,16"], "only once"),
        (["--plans", "ours,theirs"], "--plans"),
        (["--size", "17x16"], "--size 17x16"),
        (["--size", "big"], "--size"),
        (["--steps", "0"], "--steps"),
        (["--repeats", "0"], "--repeats"),
        (["--guidance", "0.5"], "--guidance"),
        (["--schedule", "round"], "--schedule"),
        (["--model", "nowhere"], "model nowhere"),
        (["--device", "abacus"], "--device"),
        (["--dtype", "int8"], "--dtype"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], wanted: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--out", str(tmp_path / "out"), *options]) == 2
    error = capfd.readouterr().err
    assert error.startswith("xdyna: error: ")
    assert wanted in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused(record: Record, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write: a part of its path is a file"):
        write_record(record, tmp_path / "file" / "below")
