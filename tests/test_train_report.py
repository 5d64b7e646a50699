"""What a run shows of itself: the page, event files, Weights & Biases, and the folder of samples."""

import json
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_parts import NoiseSource, losses, small_config, train
from typer.testing import CliRunner

from xdyna.cli import app
from xdyna.configs.train import TrainConfig
from xdyna.data.source import draw_batch
from xdyna.errors import UserError
from xdyna.train import curves
from xdyna.train.curves import Axis, Chart, Column, Line
from xdyna.train.report import charts, read_log, write_report
from xdyna.train.sample_files import note_sample, read_samples, sample_path, write_sheet
from xdyna.train.samples import contact_sheet
from xdyna.video.write import VideoWriter

VOID = {"meta", "img", "br"}  # elements that have no end


class Page(HTMLParser):
    """A page taken apart: elements as (tag, attributes), text by the tag that holds it. Tags have to balance."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append((self.open[-1] if self.open else "", data.strip()))

    def text(self, tag: str) -> list[str]:
        """The texts directly inside elements of a kind."""
        return [text for holder, text in self.words if holder == tag]

    def addresses(self) -> list[str]:
        """Everything that a browser would load or lead to."""
        keys = ("src", "href", "data", "action", "poster", "srcset", "xlink:href")
        return [value for _, given in self.elements for key, value in given.items() if key in keys and value]


def picture(seed: int, size_wh: tuple[int, int] = (40, 20)) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)


def sampler(folder: Path, step: int) -> None:
    """A sheet, a video and figures, as recipes write them."""
    write_sheet(sample_path(folder, step, ".png"), picture(step))
    with VideoWriter(sample_path(folder, step, ".mp4"), (32, 16), 8) as video:
        for seed in range(4):
            video.write(picture(seed, (32, 16)))
    note_sample(folder, step, "Truth & model", {"PSNR (dB)": {"model": 10.0 + step, "copy": 12.0}})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps with samples, checkpoints and things left out of its data."""

    class Source(NoiseSource):
        def check(self) -> list[str]:
            return ["a<b>.mp4: broken & gone"]

    out = tmp_path_factory.mktemp("runs") / "a <i> & run"
    cfg = small_config(out, steps=6, save_every=2, sample_every=2, validate_clips=4, lr=0.0123)
    train(cfg, source=Source(), sampler=sampler)
    return out


# -- the page --------------------------------------------------------------------------------------------------------


def test_page_asks_no_other_place_and_runs_no_script(done: Path) -> None:
    page = Page(done / "report.html")
    assert not {"script", "link", "iframe", "base", "object"} & {tag for tag, _ in page.elements}
    addresses = page.addresses()
    assert sum(text.startswith("data:image/") for text in addresses) == 3
    assert sum(text.startswith("data:video/mp4;") for text in addresses) == 1
    for text in addresses:
        assert text.startswith("data:") or (done / text).exists(), text
    for forbidden in ("http:", "https:", "url(", "@import", " on"):
        assert forbidden not in "".join(str(given) for _, given in page.elements if "src" not in given)
    assert "url(" not in page.source
    assert "@media (prefers-color-scheme: dark)" in page.source


def test_page_tells_what_the_run_did(done: Path) -> None:
    page = Page(done / "report.html")
    everything = [text for _, text in page.words]
    assert page.text("h1") == ["small: a <i> & run"] == page.text("title")[:1]
    assert any(text.startswith("finished, written ") for text in page.text("p"))
    assert "6 of 6" in everything
    assert {"steps", "seconds per step", "first to last step"} <= set(page.text("span"))
    assert [text for text in page.text("b") if text in {"Loss", "Gradient norm", "Learning rate", "PSNR (dB)"}] == [
        "Loss", "Gradient norm", "Learning rate", "PSNR (dB)"
    ]  # fmt: skip
    validation = [json.loads(line)["validation"] for line in (done / "log.jsonl").read_text().splitlines()[1::2]]
    assert any(f"validation {validation[0]:.4g}" in text for text in page.text("title"))
    assert any("PSNR" not in text and "model 16" in text and "copy 12" in text for text in page.text("title"))
    assert "Step 6. Truth & model" in everything
    assert {"step 2", "step 4"} <= set(everything)
    assert "a<b>.mp4: broken & gone" in page.text("li")


def test_page_tells_settings_environment_parts_and_checkpoints(done: Path) -> None:
    page = Page(done / "report.html")
    cells = page.text("td")
    rows = page.text("th")
    assert {"lr", "steps", "world.size_wh"} <= set(rows)
    changed = page.source[page.source.index("Not the defaults") : page.source.index("The others")]
    assert ">lr<" in changed
    assert ">0.0123<" in changed
    assert ">ema<" not in changed
    assert {"torch", "device", "data", "command", "samples per step"} <= set(rows)
    assert "835" in cells  # the trained net
    assert "1,275" in cells  # with the frozen convolution
    assert {"checkpoints/step-000004", "checkpoints/step-000006"} <= set(rows)
    last = json.loads((done / "log.jsonl").read_text().splitlines()[-1])["validation"]
    assert any(text.startswith(f"{last:.4g}") for text in cells)
    assert sum(text.endswith("(lowest here)") for text in cells) == 1


def test_page_is_made_again_from_the_folder_alone(done: Path) -> None:
    before = (done / "report.html").read_text().partition("</header>")[2]
    assert write_report(done) == done / "report.html"
    assert (done / "report.html").read_text().partition("</header>")[2] == before


def test_page_of_a_killed_run_leaves_out_what_it_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"recipe": "vae", "steps": 9}')
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo')
    Page(write_report(tmp_path))
    sample_path(tmp_path, 1, ".png").write_bytes(b"half a pic")
    note_sample(tmp_path, 1, "", {})
    for step in range(2, 4):
        (tmp_path / "log.jsonl").write_text(f'{{"step": {step}, "loss": 2.0}}\n')
        write_sheet(sample_path(tmp_path, step, ".png"), picture(step))
    page = Page(write_report(tmp_path, "stopped"))
    assert "step-000001.png cannot be read." in page.text("p")


def test_report_of_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json in it; wanted the folder of a training run"):
        write_report(tmp_path)


def test_large_pictures_go_into_the_page_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xdyna.train.report.LARGEST_BYTES", 2000)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "log.jsonl").write_text('{"step": 5, "loss": 2.0}\n')
    sampler(tmp_path, 5)
    write_sheet(sample_path(tmp_path, 5, ".png"), picture(0, (1700, 30)))
    addresses = Page(write_report(tmp_path)).addresses()
    assert sum(text.startswith("data:image/jpeg;") for text in addresses) == 1
    assert not any(text.startswith("data:video") for text in addresses)
    assert "samples/step-000005.mp4" in addresses


def test_page_that_cannot_be_written_is_told_of_once_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.html").mkdir()
    (tmp_path / "report.html" / "file").touch()
    run_aloud(small_config(tmp_path, steps=4, save_every=2, sample_every=2), sampler=sampler)
    assert len(losses(tmp_path)) == 4
    told = [line for line in capsys.readouterr().out.splitlines() if "report.html" in line]
    assert len(told) == 1
    assert told[0].endswith("; training goes on without it")
    assert not list(tmp_path.glob(".report*"))


def test_page_of_a_stopped_run_says_so(tmp_path: Path) -> None:
    def stop(run: Any, step: int) -> None:
        run._asked = step == 1

    train(small_config(tmp_path, steps=5), on_step=stop)
    page = Page(tmp_path / "report.html")
    assert any(text.startswith("stopped, written ") for text in page.text("p"))
    assert ("b", "2 of 5") in page.words


# -- curves ----------------------------------------------------------------------------------------------------------

VALUES = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 9))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 10_000), VALUES), min_size=1, max_size=400, unique_by=lambda point: point[0]))
def test_curves_stay_inside_their_picture(points: list[tuple[int, float]]) -> None:
    points = sorted(points)
    found = curves.draw(Chart("any", (Line("any", points),)))
    for part in found.split('d="M')[1:]:
        path = part.partition('"')[0].rstrip("Z")
        for place in path.split("L") if " " in path and "H" not in path else ():
            x, y = map(float, place.split())
            assert curves.LEFT <= x <= curves.WIDTH - curves.RIGHT + 0.06
            assert curves.TOP - 0.06 <= y <= curves.HEIGHT - curves.BOTTOM + 0.06


@settings(deadline=None, max_examples=40)
@given(st.lists(VALUES, min_size=2, max_size=900))
def test_columns_hold_every_point(values: list[float]) -> None:
    points = list(enumerate(values))
    found = curves.columns(points, 0, len(values) - 1, most=50)
    assert len(found) <= 50
    assert min(column.low for column in found) == min(values)
    assert max(column.high for column in found) == max(values)
    assert [column.step for column in found] == sorted(column.step for column in found)
    assert all(column.low - 1e-3 <= column.mean <= column.high + 1e-3 for column in found)


def test_columns_are_means_of_their_stretch() -> None:
    points = [(step, float(step % 2)) for step in range(1000)]
    found = curves.columns(points, 0, 999, most=100)
    assert len(found) == 100
    assert all(column.mean == pytest.approx(0.5, abs=0.06) for column in found)
    assert all((column.low, column.high) == (0.0, 1.0) for column in found)


def test_axis_is_logarithmic_only_over_wide_positive_values() -> None:
    def axis(*values: float) -> Axis:
        return Axis.over([Column(0, value, value, value) for value in values])

    assert axis(0.01, 10.0).log
    assert axis(0.01, 10.0).ticks() == pytest.approx([0.01, 0.1, 1.0, 10.0])
    assert not axis(1.0, 10.0).log
    assert not axis(-1.0, 100.0).log
    assert not axis(0.0, 100.0).log
    assert axis(0.5).low < 0.5 < axis(0.5).high
    for one in (axis(0.01, 10.0), axis(-3.0, 8.0), axis(0.0), axis(1e-7, 3e-7), axis(3.0, 100.0)):
        assert 2 <= len(one.ticks()) <= 13
        assert all(one.low <= tick <= one.high for tick in one.ticks())


def test_chart_tells_values_and_keeps_names_from_being_markup() -> None:
    found = curves.draw(Chart("<loss>", (Line("a&b", [(1, 2.0), (3, 4.0)]), Line("c", [(3, 5.0)]), Line("none", []))))
    assert "<loss>" not in found
    assert "&lt;loss&gt;" in found
    assert "<title>step 3: a&amp;b 4, c 5</title>" in found
    assert "none" not in found
    assert curves.draw(Chart("empty", (Line("empty", []),))) == ""


def test_charts_are_of_every_value_that_was_told(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss": 1.0, "l1": 0.5, "lr": 0.1, "time": 5.0}\n{"step": 2, "loss": 1.0, "validation": 3.0}\n'
    )
    sampler(tmp_path, 2)
    note_sample(tmp_path, 4, "", {"PSNR (dB)": {"model": float("nan")}})
    found = charts(read_log(tmp_path / "log.jsonl"), read_samples(tmp_path))
    drawn = {chart.title: {line.name: list(line.points) for line in chart.lines} for chart in found}
    assert drawn == {
        "Loss": {"training": [(1, 1.0), (2, 1.0)], "validation": [(2, 3.0)]},
        "Gradient norm": {"Gradient norm": []},
        "Learning rate": {"Learning rate": [(1, 0.1)]},
        "l1": {"l1": [(1, 0.5)]},
        "PSNR (dB)": {"model": [(2, 12.0)], "copy": [(2, 12.0)]},
    }


# -- samples ---------------------------------------------------------------------------------------------------------


def test_samples_are_read_back_the_later_of_one_step(tmp_path: Path) -> None:
    assert read_samples(tmp_path) == []
    sampler(tmp_path, 4)
    note_sample(tmp_path, 4, "again", {"px": {"mean": 1.0}})
    write_sheet(sample_path(tmp_path, 2, ".png"), picture(0))
    with (tmp_path / "samples" / "samples.jsonl").open("a") as notes:
        notes.write('{"step": 6, "capt')
    two, four = read_samples(tmp_path)
    assert (two.step, two.caption, two.video) == (2, "", None)
    assert (four.step, four.caption, four.figures) == (4, "again", {"px": {"mean": 1.0}})
    assert four.sheet == tmp_path / "samples" / "step-000004.png"
    assert four.video == tmp_path / "samples" / "step-000004.mp4"
    assert [sample.step for sample in read_samples(tmp_path, last_step=3)] == [2]


@pytest.mark.parametrize(
    ("size_wh", "wanted_wh"), [((100, 50), (200, 100)), ((1200, 90), (1200, 90)), ((4800, 600), (2400, 300))]
)
def test_sheets_are_brought_to_a_size_to_look_at(
    tmp_path: Path, size_wh: tuple[int, int], wanted_wh: tuple[int, int]
) -> None:
    sheet = picture(0, size_wh)
    write_sheet(tmp_path / "a.png", sheet)
    read = cv2.imread(str(tmp_path / "a.png"))
    assert read is not None
    assert (read.shape[1], read.shape[0]) == wanted_wh
    if wanted_wh[0] >= size_wh[0]:
        every = wanted_wh[0] // size_wh[0]
        assert (read[::every, ::every, ::-1] == sheet).all()


def test_sheet_that_cannot_be_written_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "samples").touch()
    with pytest.raises(UserError, match="samples: cannot write"):
        sample_path(tmp_path, 1, ".png")
    with pytest.raises(UserError, match=r"step.png: cannot write: its folder does not exist"):
        write_sheet(tmp_path / "none" / "step.png", picture(0))


def test_contact_sheet_shows_truth_poses_and_model_of_every_clip_in_two_columns() -> None:
    source = NoiseSource()
    batch = draw_batch(source, range(3))
    made = batch.frames[:, 1:] // 2
    sheet = contact_sheet(batch, made)
    width = 7 * 4  # the reference and six frames, 4 pixels each
    assert sheet.shape == (2 * 3 * 4, width + 4 + width, 3)
    places = [(0, 0), (12, 0), (0, width + 4)]
    for clip, (top, left) in enumerate(places):
        block = sheet[top : top + 12, left : left + width]
        assert all((block[4 * row : 4 * row + 4, :4] == batch.frames[clip, 0]).all() for row in range(3))
        for row, strip in enumerate((batch.frames[clip, 1:], batch.pose_maps[clip, 1:], made[clip])):
            assert (block[4 * row : 4 * row + 4, -4:] == strip[-1]).all()
    assert (sheet[12:, width + 4 :] == 255).all()


# -- event files -----------------------------------------------------------------------------------------------------


def run_aloud(cfg: TrainConfig, **given: Any) -> None:
    """The small recipe, telling the user what it tells."""
    from loop_parts import SmallSystem

    from xdyna.train.run import Run

    run = Run(cfg, "small", SmallSystem(), NoiseSource(), **given)
    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()


def test_event_files_hold_the_log_and_the_samples_also_over_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(small_config(tmp_path, steps=4, save_every=4, sample_every=2, validate_clips=2), sampler=sampler)
    train(small_config(tmp_path, steps=6, save_every=2, sample_every=2, validate_clips=2), sampler=sampler, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    def by_time(told: list[Any]) -> list[Any]:
        return sorted(told, key=lambda event: event.wall_time)  # files begun in one second are read in either order

    told = [(event.step, event.value) for event in by_time(events.Scalars("train/loss"))]
    assert [step for step, _ in told] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in told] == pytest.approx(losses(tmp_path))
    assert {"train/lr", "train/grad", "train/timestep", "validation/loss"} <= set(events.Tags()["scalars"])
    assert [event.value for event in by_time(events.Scalars("samples/PSNR_dB/model"))] == [12.0, 14.0, 16.0]
    assert [event.step for event in by_time(events.Images("samples/sheet"))] == [2, 4, 6]
    assert "settings/text_summary" in events.Tags()["tensors"]


def test_training_goes_on_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run_aloud(small_config(tmp_path, steps=2, sample_every=1), sampler=sampler)
    assert len(losses(tmp_path)) == 2
    assert not (tmp_path / "tensorboard").exists()
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tensorboard")]
    assert len(told) == 1
    assert told[0].startswith("tensorboard: no event files are written (")
    assert told[0].endswith("); pip install 'xdyna[train]'")


def test_training_goes_on_where_event_files_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").touch()  # a file where the folder should be
    run_aloud(small_config(tmp_path, steps=2, sample_every=1), sampler=sampler)
    assert len(losses(tmp_path)) == 2
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tensorboard")]
    assert len(told) == 1
    assert told[0].endswith("; training goes on without event files")


# -- Weights & Biases ------------------------------------------------------------------------------------------------


class Service:
    """Stands in for the package `wandb`; what it is told stays here."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.entries: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0
        self.package = SimpleNamespace(init=self.init, Image=lambda path, caption: ("image", path, caption),
                                       Video=lambda path, format: ("video", path, format))  # fmt: skip

    def init(self, **given: Any) -> Any:
        self.started.append(given)
        return SimpleNamespace(id=given["id"] or "abc123", log=self.log, finish=self.finish)

    def log(self, entry: dict[str, Any], step: int) -> None:
        self.entries.append((step, entry))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service.package)
    return service


def test_wandb_is_told_what_the_log_is_told_and_goes_on_in_its_page(tmp_path: Path, service: Service) -> None:
    train(small_config(tmp_path, steps=2, save_every=2, sample_every=2, wandb=True), sampler=sampler)
    train(small_config(tmp_path, steps=3, sample_every=2, wandb=True), resume=True)
    assert [given["id"] for given in service.started] == [None, "abc123"]
    assert service.started[0]["config"]["recipe"] == "small"
    assert service.started[0]["config"]["steps"] == 2
    assert [step for step, _ in service.entries] == [1, 2, 2, 3]
    assert [entry["train/loss"] for _, entry in service.entries if "train/loss" in entry] == losses(tmp_path)
    sampled = service.entries[2][1]
    assert sampled["samples/PSNR_dB/model"] == 12.0
    assert sampled["samples/sheet"] == ("image", str(tmp_path / "samples/step-000002.png"), "Truth & model")
    assert sampled["samples/video"] == ("video", str(tmp_path / "samples/step-000002.mp4"), "mp4")
    assert service.finished == 2


def test_wandb_is_left_alone_unless_asked_for(tmp_path: Path, service: Service) -> None:
    train(small_config(tmp_path, steps=1))
    assert service.started == []


def test_missing_wandb_ends_the_run_before_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError) as error:
        train(small_config(tmp_path, steps=1, wandb=True))
    said = str(error.value)
    assert said.startswith("wandb=true: wandb cannot be imported (")
    assert said.endswith("); pip install wandb, or set wandb=false")
    assert not (tmp_path / "log.jsonl").exists()


def test_wandb_that_refuses_to_start_is_one_line(tmp_path: Path, service: Service) -> None:
    def refuse(**given: Any) -> None:
        raise RuntimeError("api_key not configured\nTraceback and more")

    service.package.init = refuse
    with pytest.raises(UserError) as error:
        train(small_config(tmp_path, steps=1, wandb=True))
    assert str(error.value).startswith("wandb=true: api_key not configured; run `wandb login`")
    assert "\n" not in str(error.value)


# -- recipes through the command -------------------------------------------------------------------------------------

SMALL = [
    "world.size_wh=[32, 48]", "world.framings={full: 1.0}", "workers=0", "save_every=2", "batch=2", "warmup=0",
    "validate_clips=2", "sample_every=1",
]  # fmt: skip


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("recipe", "sets", "titles", "video"),
    [
        ("vae", ["widths=[8, 8, 8]"], {"Loss", "kl", "PSNR (dB)"}, False),
        ("motion_lora", ["frames=2", "sample_steps=1"], {"Loss", "PSNR of the figures (dB)"}, True),
        (
            "joints",
            ["moments=2", "widths=[8, 8, 8, 8]", "vae_share=0"],
            {"Loss", "px", "Error of the joints (px)"},
            False,
        ),
    ],
)
def test_every_recipe_has_a_page_with_its_pictures(
    tiny_folder: Path, tmp_path: Path, recipe: str, sets: list[str], titles: set[str], video: bool
) -> None:
    words = [word for text in [*SMALL, f"base={tiny_folder}", *sets] for word in ("--set", text)]
    result = CliRunner().invoke(app, ["train", recipe, "--out", str(tmp_path), "--steps", "2", *words])
    assert result.exit_code == 0, result.output
    page = Page(tmp_path / "report.html")
    assert page.text("h1")[0].startswith(f"{recipe}: ")
    assert titles <= set(page.text("b"))
    assert sum(text.startswith("data:image/") for text in page.addresses()) == 2
    for step in (1, 2):
        sheet = cv2.imread(str(tmp_path / "samples" / f"step-{step:06d}.png"))
        assert sheet is not None
        assert sheet.std() > 5
    assert any(text.startswith("data:video/mp4") for text in page.addresses()) == video
    if video:
        with av.open(str(tmp_path / "samples" / "step-000002.mp4")) as opened:
            assert opened.streams.video[0].codec_context.name == "h264"
            assert len(list(opened.decode(video=0))) == 2
