"""The page of an evaluation: what it shows, what it refuses, and that it works in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from eval_clips import add_grid_metric, put_set

from xdyna.cli import main
from xdyna.configs.evaluate import EvaluateConfig
from xdyna.errors import UserError
from xdyna.infer.evaluate.pairs import pairs_by_name
from xdyna.infer.evaluate.protocol import load_protocol
from xdyna.infer.evaluate.publish import write_markdown, write_records
from xdyna.infer.evaluate.report.methods import gather
from xdyna.infer.evaluate.report.page import ReportJob, write_report
from xdyna.infer.evaluate.report.plots import by_scene, distributions, over_time
from xdyna.infer.evaluate.report.strips import worst_and_best
from xdyna.infer.evaluate.results import ClipLine, Results
from xdyna.infer.evaluate.score import ScoreJob, score

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on four clips; `better` has less noise."""
    root = tmp_path_factory.mktemp("report")
    put_set(root, strength=20.0, method="worse")
    put_set(root, strength=4.0, method="better")
    with pytest.MonkeyPatch.context() as patched:
        add_grid_metric(patched)
        methods = {
            name: pairs_by_name(root / name, root / "truth", masks=root / "masks") for name in ("worse", "better")
        }
        folders = {name: root / name for name in methods}
        config = EvaluateConfig(metrics=("psnr", "motion-energy", "grid-frechet"))
        score(ScoreJob(methods, folders, root / "results.jsonl", load_protocol("v1"), config))
    return root / "results.jsonl"


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    """The page of both, with one worst and one best clip of each."""
    assert main(["eval", "report", str(results), "--out", str(results.parent / "report.html"), "--strips", "1"]) == 0
    return (results.parent / "report.html").read_text(encoding="utf-8")


def test_page_asks_no_other_place_and_shows_both_methods(page: str) -> None:
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in re.sub(r'src="data:[^"]+"', "", page)
    assert page.count("<video") == 4
    for column in ("output", "truth", "difference x3"):
        assert page.count(f"<span>{column}</span>") == 4
    for head in ("As the paper reports", "All figures", "Over the clips", "Over time", "Worst and best clips"):
        assert f"<h2>{head}" in page


def test_figures_are_those_of_the_results(page: str, results: Path) -> None:
    found = Results.read(results)
    for method in ("worse", "better"):
        values = [line.values["psnr/all"] for line in found.clips if line.method == method]
        mean = sum(values) / len(values)
        assert f"{mean:.4g}" in page
        frechet = next(line for line in found.sets if line.method == method).values["grid-frechet/all"]
        assert f'data-v="{frechet!r}"' in page
    row = page[page.index('<th scope="row">psnr/all</th>') :]
    best = re.search(r'<span class="best">([\d.]+)</span>', row)
    good = [line.values["psnr/all"] for line in found.clips if line.method == "better"]
    assert best
    assert best[1] == f"{sum(good) / len(good):.4g}"


def test_worst_and_best_are_ranked_by_the_figure() -> None:
    def line(name: str, value: float, truth: float) -> ClipLine:
        return ClipLine("p", "m", name, name, 0, 16, values={"x": value}, truth={"x": truth})

    lines = [line("a", 1.0, 3.0), line("b", 2.0, 2.0), line("c", 3.0, 9.0), line("d", float("nan"), 1.0)]
    assert [x.clip for part in worst_and_best(lines, "x", "higher", 5) for x in part] == ["a", "b", "c"]
    assert [x.clip for part in worst_and_best(lines, "x", "lower", 1) for x in part] == ["c", "a"]
    assert [x.clip for part in worst_and_best(lines, "x", "truth", 1) for x in part] == ["c", "b"]


def test_clips_that_have_gone_are_told_and_the_rest_is_shown(results: Path, tmp_path: Path) -> None:
    text = results.read_text()
    for old, new in ((str(results.parent / "better" / "b"), str(tmp_path / "gone")),):
        text = text.replace(old, new)
    (tmp_path / "results.jsonl").write_text(text)
    notes = write_report(ReportJob((tmp_path / "results.jsonl",), tmp_path / "report.html", strips=4))
    assert any("gone" in note and "better" in note for note in notes)
    shown = (tmp_path / "report.html").read_text()
    assert shown.count("<video") == 7  # of eight
    assert "Not shown" in shown


def test_other_protocols_test_sets_and_double_names_are_refused(results: Path, tmp_path: Path) -> None:
    lines = results.read_text().splitlines()
    header = json.loads(lines[0])
    for key, value, message in (
        ("protocol_hash", "0" * 64, "different protocols"),
        ("dataset", {"name": "other"}, "test set"),
        ("command", "again", "two files hold a method worse"),
    ):
        (tmp_path / "other.jsonl").write_text("\n".join([json.dumps({**header, key: value}), *lines[1:]]) + "\n")
        with pytest.raises(UserError, match=message):
            gather([results, tmp_path / "other.jsonl"])


def test_mistakes_are_one_line(results: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--by", "psnrr"], "no clip has that figure"),
        (["--out", str(tmp_path / "page.txt")], "ends in .html or .md"),
    ):
        assert main(["eval", "report", str(results), "--out", str(tmp_path / "x.html"), *options]) == 2
        error = capfd.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_page_of_records_holds_the_results_numbers(results: Path, tmp_path: Path) -> None:
    assert main(["eval", "report", str(results), "--out", str(tmp_path / "records")]) == 0
    files = [tmp_path / "records" / f"{name}.json" for name in ("worse", "better")]
    assert main(["eval", "report", *map(str, files), "--out", str(tmp_path / "results.md")]) == 0
    page = (tmp_path / "results.md").read_text()
    values = {line.clip: line.values["psnr/all"] for line in Results.read(results).clips if line.method == "better"}
    row = next(line for line in page.splitlines() if line.startswith("| `psnr/all`, dB ↑ |"))
    assert f"| {sum(values.values()) / 4:.3g} [" in row
    differences = page[page.index("## Differences to worse") :]
    row = next(line for line in differences.splitlines() if line.startswith("| `psnr/all`, dB ↑ |"))
    assert row.split("|")[2].strip().startswith("**+")
    assert "grid-frechet/all" in page


def test_records_of_other_protocols_do_not_go_on_one_page(results: Path, tmp_path: Path) -> None:
    write_records([results], tmp_path)
    record = json.loads((tmp_path / "better.json").read_text())
    (tmp_path / "better.json").write_text(json.dumps({**record, "protocol_hash": "0" * 64}))
    with pytest.raises(UserError, match="of another protocol"):
        write_markdown([tmp_path / "worse.json", tmp_path / "better.json"], tmp_path / "page.md", "")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(UserError, match="is no record"):
        write_markdown([tmp_path / "empty.json"], tmp_path / "page.md", "")
    lines = results.read_text().splitlines()
    (tmp_path / "cut.jsonl").write_text("\n".join(line for line in lines if not line.startswith('{"set"')) + "\n")
    with pytest.raises(UserError, match="has not ended"):
        write_records([tmp_path / "cut.jsonl"], tmp_path)
    assert not (tmp_path / "page.md").exists()


def test_plots_place_values_where_they_belong() -> None:
    drawn = distributions("t", "dB", {"a": [1.0, 2.0, 3.0], "<b>": [2.0]}, truth=2.0)
    assert "<b>:" not in drawn
    xs = [float(x) for x in re.findall(r'class="dot" cx="([\d.]+)"', drawn)]
    assert xs[0] < xs[1] < xs[2]
    assert xs[1] == xs[3]
    assert distributions("t", "dB", {"a": [float("nan")]}) == ""
    scenes = by_scene("t", "dB", {"a": {"sea": (1.0, 0.5, 1.5), "fire": (2.0, 2.0, 2.0)}})
    assert scenes.count("<circle") == 2
    assert scenes.count('class="line"') == 1  # one value alone has no interval
    curve = over_time("t", "levels", {"a": [1.0, 2.0, 3.0], "truth": [2.0, 2.0, 2.0]}, 12.0)
    assert curve.count("<path class=") >= 2
    assert 'class="line soft"' in curve
    assert over_time("t", "levels", {"a": [1.0]}, 12.0) == ""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.slow
def test_a_browser_sorts_the_table_and_reports_no_errors(page: str, tmp_path: Path) -> None:
    script = """
    const table = document.querySelectorAll("table.sorts")[1], head = table.tHead.rows[0].cells[3];
    const column = () => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[3].dataset.v));
    head.click(); const up = column(); head.click(); const down = column();
    const videos = [...document.querySelectorAll("video")];
    Promise.all(videos.map((v) => new Promise((done) => v.readyState > 1 ? done() : v.onloadeddata = v.onerror = done)))
      .then(() => { document.body.innerHTML = "<pre id=told>" + JSON.stringify(
        {up, down, playable: videos.map((v) => v.error === null && v.videoWidth > 0)}) + "</pre>"; });
    """
    (tmp_path / "page.html").write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=8000 --dump-dom"
    )
    done = subprocess.run(
        [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'page.html'}"],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    told = json.loads(re.search(r'<pre id="told">(.*)</pre>', done.stdout)[1])  # type: ignore[index]
    assert told["up"] == sorted(told["up"])
    assert told["down"] == sorted(told["up"], reverse=True)
    assert len(told["up"]) > 3
    assert told["playable"] == [True] * 4
