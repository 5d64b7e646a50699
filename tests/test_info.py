"""`xdyna info`: what it tells is so."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_pipeline

import xdyna
from xdyna.cli import main
from xdyna.infer.info import LIBRARIES, attention_backends, collect, versions


def test_facts_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path))
    facts = collect("cpu")
    assert facts["xdyna"] == xdyna.__version__
    assert facts["device"]["threads"] == torch.get_num_threads()
    assert facts["dtype"] == "float32"
    assert collect("cpu", "bfloat16")["dtype"] == "bfloat16"
    assert 0 < facts["memory"]["host_free"] <= facts["memory"]["host_total"]
    assert facts["versions"]["torch"] == torch.__version__
    assert set(versions()) == set(LIBRARIES)
    assert [(model["name"], model["found"]) for model in facts["models"]] == [("x-dyna", False), ("tiny", True)]
    assert facts["models"][1]["auto"]


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
