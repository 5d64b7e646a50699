"""`--profile`: a table that adds up, a trace that viewers open, and the same bytes as without."""

from __future__ import annotations

import hashlib
import json
import mmap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from animate_inputs import files_in, make_driver, make_photo

from xdyna.cli import main
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.infer import profile as profile_module
from xdyna.infer.animate import AnimateJob
from xdyna.infer.profile import FACTS, TABLE, TRACE, NoProfile, Profile, Row, Table, profile_folder
from xdyna.infer.session import Session


@pytest.fixture(scope="module")
def job(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AnimateJob:
    folder = tmp_path_factory.mktemp("profiled")
    photo, driver = make_photo(folder / "photo.png"), make_driver(folder / "dance.mp4", 8, tone=(0.2, 0.4))
    (folder / "out").mkdir()
    config = AnimateConfig(model=str(tiny_folder), frames=8, steps=2, window=4, overlap=1)
    return AnimateJob(photo, driver, folder / "out" / "out.mp4", config)


@pytest.fixture(scope="module")
def measured(job: AnimateJob) -> dict[str, Any]:
    """The facts and the trace of one job, and the digests of its output without and with profile."""
    found: dict[str, Any] = {}

    def digests() -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (job.output, job.record)]

    with Session() as session:
        session.run(job)
        found["plain"] = digests()
        assert files_in(job.output.parent) == ["out.mp4", "out.mp4.json"]
        session.close()
        profiled = AnimateJob(
            job.reference, job.driving, job.output, job.config.model_copy(update={"profile": True, "preview": False})
        )
        session.run(profiled)
        found["profiled"] = digests()
    folder = profile_folder(job.output)
    found |= {"facts": json.loads((folder / FACTS).read_text()), "trace": json.loads((folder / TRACE).read_text())}
    found["table"] = (folder / TABLE).read_text()
    return found


def test_the_result_is_the_same(measured: dict[str, Any], job: AnimateJob) -> None:
    assert measured["plain"] == measured["profiled"]
    assert files_in(job.output.parent) == ["out.mp4", "out.mp4.json", "out.mp4.profile"]
    assert files_in(profile_folder(job.output)) == [FACTS, TABLE, TRACE]


def test_the_stages_are_told_and_add_up(measured: dict[str, Any]) -> None:
    facts = measured["facts"]
    stages = {("beside " * row["beside"]) + "/".join(row["path"]): row for row in facts["stages"]}
    wanted = {
        "open, import", "load", "encode", "embed", "denoise", "denoise/UNet", "denoise/ControlNets",
        "denoise/reference", "denoise/scheduler", "denoise/save", "denoise/tracing", "decode", "finish the file",
        "finish the file/sound", "beside write", "beside write/sound", "beside prepare", "beside prepare/photo",
        "beside prepare/align", "beside prepare/pose", "beside prepare/face maps", "beside prepare/pose maps",
    }  # fmt: skip
    assert wanted <= set(stages)
    assert stages["denoise/UNet"]["calls"] == stages["denoise/ControlNets"]["calls"] >= 2 * 3
    assert stages["denoise/scheduler"]["calls"] == 2
    assert stages["decode"]["calls"] == 8 + 1
    assert stages["beside write"]["calls"] == 8
    main_s = [row["seconds"] for row in facts["stages"] if not row["beside"] and len(row["path"]) == 1]
    assert sum(main_s) == pytest.approx(facts["seconds"])
    parts_s = [row["seconds"] for name, row in stages.items() if name.startswith("denoise/")]
    assert sum(parts_s) == pytest.approx(stages["denoise"]["seconds"])
    assert facts["frames_per_s"] == pytest.approx(8 / facts["seconds"])


def test_memory_is_that_of_the_stage(measured: dict[str, Any]) -> None:
    rows = [row for row in measured["facts"]["stages"] if row["path"][-1] != "the rest"]
    if profile_module._host_peak() is None:
        pytest.skip("this system does not tell the peak of a stretch")
    assert all(1 << 20 < row["host_bytes"] < 1 << 40 for row in rows)
    assert all(row["device_bytes"] is None for row in rows)


def test_the_trace_has_operations_and_stages_on_one_clock(measured: dict[str, Any]) -> None:
    events = measured["trace"]["traceEvents"]
    spans = [event for event in events if event.get("cat") == "xdyna"]
    operations = [event for event in events if event.get("name") == "aten::convolution"]
    assert {"load", "UNet", "decode", "write"} <= {event["name"] for event in spans}
    assert all(event["ph"] == "X" and event["dur"] >= 0 for event in spans)
    unets = [event for event in spans if event["name"] == "UNet"]
    within = [
        sum(unet["ts"] <= op["ts"] and op["ts"] + op["dur"] <= unet["ts"] + unet["dur"] for unet in unets)
        for op in operations
    ]
    assert sum(within) > 20
    # The first calls of the second step are traced.
    traced = {
        number for number, unet in enumerate(unets) for op in operations
        if unet["ts"] <= op["ts"] <= unet["ts"] + unet["dur"]
    }  # fmt: skip
    scheduler = [event for event in spans if event["name"] == "scheduler"]
    first = sum(unet["ts"] < scheduler[0]["ts"] for unet in unets)
    assert traced == {first, first + 1}


def test_the_table_is_markdown(measured: dict[str, Any]) -> None:
    lines = measured["table"].splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len({len(line) for line in table}) == 1
    assert table[0].split("|")[1].strip() == "stage"
    assert any(line.startswith("| - UNet") for line in table)
    assert "frames/s" in measured["table"]


def test_the_command_prints_the_table(
    job: AnimateJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = [{"ref": str(job.reference), "pose_video": str(job.driving), "output": "a.gif"}]
    Path("jobs.json").write_text(json.dumps(manifest))
    options = ["--model", job.config.model, "--frames", "1", "--steps", "1", "--profile"]
    assert main(["animate", "--jobs", "jobs.json", *options]) == 0
    out = capsys.readouterr().out
    assert "| stage " in out
    assert "a.gif.profile: table and trace" in out
    trace = json.loads(Path("a.gif.profile", TRACE).read_text())
    assert any(event.get("name") == "aten::convolution" for event in trace["traceEvents"]), "a step alone is traced"
    before = Path("a.gif").read_bytes()
    assert main(["animate", "--jobs", "jobs.json", *options, "--no-profile", "--json"]) == 0
    assert Path("a.gif").read_bytes() == before
    assert "| stage " not in capsys.readouterr().out


def test_a_file_in_the_way_is_told_before_any_work(job: AnimateJob, tmp_path: Path) -> None:
    (tmp_path / "out.gif.profile").write_text("mine")
    config = job.config.model_copy(update={"profile": True})
    with Session() as session, pytest.raises(UserError, match=r"out\.gif\.profile: is a file, wanted a folder"):
        session.run(AnimateJob(job.reference, job.driving, tmp_path / "out.gif", config))
    assert files_in(tmp_path) == ["out.gif.profile"]


# --- alone -------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_parts_and_what_is_left_of_them(tmp_path: Path) -> None:
    clock = Clock()
    profile = Profile(tmp_path / "p", clock)
    clock.now_s += 1
    profile.on(torch.device("cpu"))
    with profile.span("denoise"):
        for _ in range(2):
            with profile.span("UNet"):
                clock.now_s += 3
            clock.now_s += 1
    clock.now_s += 2
    profile.write("about", 5)
    facts = json.loads((tmp_path / "p" / FACTS).read_text())
    assert [(row["path"], row["seconds"]) for row in facts["stages"]] == [
        (["open, import"], 1),
        (["denoise"], 8), (["denoise", "UNet"], 6), (["denoise", "the rest"], 2), (["the rest"], 2),
    ]  # fmt: skip
    assert facts["frames_per_s"] == 5 / 11


def test_progress_makes_stages_in_a_thread_of_their_own(tmp_path: Path) -> None:
    clock = Clock()
    profile = Profile(tmp_path / "p", clock)

    def prepare() -> None:
        with profile.span("prepare"):
            for stage, done, total in [("photo", 0, 1), ("photo", 1, 1), ("pose", 0, 2), ("pose", 1, 2), ("pose", 2, 2),
                                       ("pose", 2, 2), ("faces", 0, 2), ("maps", 0, 9)]:  # fmt: skip
                profile.stage(stage, done, total)
                clock.now_s += 1

    thread = threading.Thread(target=prepare)
    thread.start()
    thread.join()
    profile.write("about", 1)
    facts = json.loads((tmp_path / "p" / FACTS).read_text())
    rows = {"/".join(row["path"]): (row["seconds"], row["calls"]) for row in facts["stages"] if row["beside"]}
    assert rows["prepare/photo"] == (1, 1)
    assert rows["prepare/pose"] == (2, 1)
    assert rows["prepare/faces"] == (1, 1), "ended by the next"
    assert rows["prepare/maps"] == (1, 1), "ended with what it is part of"
    assert rows["prepare/the rest"] == (3, 1)


def test_long_jobs_keep_the_trace_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "MOST_SPANS", 10)
    profile = Profile(tmp_path / "p")
    profile.on(torch.device("cpu"))
    for number in profile.each("decode", range(30)):
        assert number < 30
    profile.write("about", 30)
    facts = json.loads((tmp_path / "p" / FACTS).read_text())
    trace = json.loads((tmp_path / "p" / TRACE).read_text())
    assert sum(event.get("cat") == "xdyna" for event in trace["traceEvents"]) == 10
    assert (facts["spans_not_in_trace"], facts["stages"][1]["calls"]) == (22, 31)


def test_peaks_are_those_of_the_stage(tmp_path: Path) -> None:
    if profile_module._host_peak() is None:
        pytest.skip("this system does not tell the peak of a stretch")
    profile = Profile(tmp_path / "p")
    profile.on(torch.device("cpu"))
    with profile.span("small"):
        pass
    with profile.span("large"):
        with profile.span("within"):
            large = mmap.mmap(-1, 64 << 20)  # new pages, whatever the process has freed before
            large.write(bytes(64 << 20))
        large.close()
    with profile.span("after"):
        pass
    rows = {row.path: row.host or 0 for row in profile._rows.values()}
    assert rows[("large", "within")] >= rows[("small",)] + (60 << 20)
    assert rows[("large",)] >= rows[("large", "within")]
    assert rows[("after",)] < rows[("large",)] - (50 << 20)


def test_a_gpus_memory_has_a_column() -> None:
    table = Table("about", 2, 4.0, [Row(("denoise",), False, 1, 4.0, 5 << 20, 7 << 20)])
    assert table.text().splitlines()[4:] == [
        "| stage    | seconds |   share | ms/frame | calls | host MiB | GPU MiB |",
        "|----------|--------:|--------:|---------:|------:|---------:|--------:|",
        "| denoise  |    4.00 | 100.0 % |   2000.0 |     1 |        5 |       7 |",
        "| the rest |    0.00 |   0.0 % |      0.0 |     1 |        - |       - |",
    ]


def test_nothing_is_measured_unless_asked_for(tmp_path: Path) -> None:
    profile = NoProfile()
    inner = object()
    items = [1, 2]
    assert profile.steps(inner, 0) is inner  # type: ignore[comparison-overlap, arg-type]
    assert profile.each("decode", items) is items
    assert profile.around("denoise", len) is len
    with profile.span("x"):
        profile.on(torch.device("cpu"))
        profile.stage("x", 0, 1)
    assert profile.write("about", 1) is None
    assert files_in(tmp_path) == []
