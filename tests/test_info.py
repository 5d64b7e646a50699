"""`xdyna info`: what it tells is so."""

import json
import os
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_pipeline

import xdyna
from xdyna.cli import main
from xdyna.infer.info import LIBRARIES, attention_backends, attention_taken, collect, host_memory, versions


def test_facts_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path))
    facts = collect("cpu")
    assert facts["xdyna"] == xdyna.__version__
    assert facts["device"]["threads"] == torch.get_num_threads()
    assert facts["dtype"] == "float32"
    assert collect("cpu", "bfloat16")["dtype"] == "bfloat16"
    assert facts["device"]["cores"] == os.cpu_count()
    assert facts["device"]["model"]
    assert 0 < facts["memory"]["host_free"] <= facts["memory"]["host_total"]
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["built_with"]["CUDA"] == torch.version.cuda
    assert set(versions()) == set(LIBRARIES)
    assert [(model["name"], model["found"]) for model in facts["models"]] == [("x-dyna", False), ("tiny", True)]
    assert facts["models"][1]["auto"]


def test_attention_that_is_taken_is_the_one_that_runs() -> None:
    """What is named is what torch's own record of a call shows."""
    taken = attention_taken(torch.device("cpu"), torch.float32)
    assert taken in ("flash", "math", None)
    q = torch.zeros(1, 8, 64, 40)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    names = {event.key for event in profiler.key_averages()}
    assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in names) == (taken == "flash")


def test_memory_is_what_can_be_had(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 4096 kB\nMemFree: 100 kB\nMemAvailable: 2048 kB\nHugePages_Total: 0\n")
    mib = 1 << 20
    assert host_memory(tmp_path, tmp_path) == {"host_total": 4 * mib, "host_free": 2 * mib}
    (tmp_path / "memory.current").write_text(f"{mib // 2}\n")
    for limit, wanted in [("max", (4 * mib, 2 * mib)), (str(mib), (mib, mib // 2)), (str(9 * mib), (4 * mib, 2 * mib))]:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert tuple(host_memory(tmp_path, tmp_path).values()) == wanted
    assert host_memory(tmp_path / "none", tmp_path / "none") == {}


def test_other_models_that_lie_there_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path))
    (tmp_path / "converted" / "mine").mkdir(parents=True)
    (tmp_path / "converted" / "not-one").mkdir()
    (tmp_path / "converted" / "mine" / "model_index.json").write_text("{}")
    names = {model["name"]: model["about"] for model in collect("cpu")["models"]}
    assert list(names) == ["x-dyna", "tiny", "mine"]
    assert names["mine"] == f"--model {tmp_path / 'converted' / 'mine'}"


def test_converted_weights_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path))
    tiny_pipeline().save_pretrained(tmp_path / "converted" / "x-dyna")
    official, tiny = collect("cpu")["models"]
    assert official["found"]
    assert official["auto"]
    assert not tiny["auto"]


def test_attention_backends_that_are_off_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cuda.flash_sdp_enabled", lambda: False)
    named = attention_backends(torch.device("cuda"))
    assert "flash" not in named
    assert named[-1] == "math"


def test_command_prints_lines_or_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("device: cpu (") for line in lines)
    assert sum(line.startswith("model ") for line in lines) == 2
    assert main(["info", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"]["name"] == "cpu"


def test_a_device_that_is_not_here_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--device", "cuda:99"]) == 2
    assert "cuda:99" in capsys.readouterr().err
