"""The training loop in one process: stopping and going on, checkpoints, what is refused, and what is told to whom."""

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_parts import NoiseSource, SmallSystem, frozen_digests, losses, main, small_config, train
from safetensors.torch import load_file

from xdyna.errors import UserError
from xdyna.train import checkpoints
from xdyna.train.feed import Plan
from xdyna.train.modules import count_parameters
from xdyna.train.optimize import Average, rate_factor
from xdyna.train.run import Run

SCRIPT = Path(__file__).with_name("loop_parts.py")


def script(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the small recipe in a process of its own."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False, timeout=290
    )


def equal_files(one: Path, other: Path) -> bool:
    """Whether two safetensors files hold the same keys and bits."""
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


# -- stop and go -------------------------------------------------------------------------------------------------


def test_killed_at_a_random_step_and_resumed_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    words = ["steps=12", "save_every=3", "ema=0.9", "accumulate=2", "reuse=2", "validate_clips=4"]
    kill = random.Random(7).randrange(4, 12)
    done = script(tmp_path / "killed", *words, "workers=1", f"kill={kill}")
    assert done.returncode == -9, done.stderr
    assert len(losses(tmp_path / "killed")) == kill
    assert not (tmp_path / "killed" / "model").exists()
    main(tmp_path / "killed", *words, "--resume")
    main(tmp_path / "whole", *words)
    assert equal_files(tmp_path / "killed/model/net.safetensors", tmp_path / "whole/model/net.safetensors")
    for kind in ("net", "average/net"):
        last = f"checkpoints/step-000012/{kind}.safetensors"
        assert equal_files(tmp_path / "killed" / last, tmp_path / "whole" / last)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 12


def test_sigterm_saves_and_exits_and_the_run_goes_on(tmp_path: Path) -> None:
    done = script(tmp_path / "run", "steps=6", "save_every=100", "term=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("step-000003")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-000003"]
    assert not (tmp_path / "run/model").exists()
    main(tmp_path / "run", "steps=6", "save_every=100", "--resume")
    main(tmp_path / "whole", "steps=6")
    assert equal_files(tmp_path / "run/model/net.safetensors", tmp_path / "whole/model/net.safetensors")


@pytest.mark.parametrize("place", ["reduce", "clip_grad_norm_"])
def test_a_signal_while_processes_agree_ends_after_the_next_step(tmp_path: Path, place: str) -> None:
    """Which all of them then know of: were one to stop at once, the others would wait for it."""

    def signalled(run: Run, step: int) -> None:
        real = getattr(run.accelerator, place)

        def call(*args: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            setattr(run.accelerator, place, real)
            return real(*args)

        if step == 2:
            setattr(run.accelerator, place, call)

    train(small_config(tmp_path, steps=9), on_step=signalled)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]


def test_resumed_run_sees_the_same_samples(tmp_path: Path) -> None:
    def drawn(out: Path, *parts: int, **values: Any) -> list[int]:
        seen: list[int] = []
        for steps in parts:
            source = NoiseSource()
            train(small_config(out, steps=steps, **values), source=source, resume=True)
            seen += source.drawn
        return seen

    assert drawn(tmp_path / "whole", 5) == drawn(tmp_path / "split", 2, 5) == list(range(10))


def test_what_modules_draw_repeats_after_a_resume(tmp_path: Path) -> None:
    whole = train(small_config(tmp_path / "whole", steps=4), system=SmallSystem(dropout=0.5))
    train(small_config(tmp_path / "split", steps=2), system=SmallSystem(dropout=0.5))
    torch.rand(3)
    split = train(small_config(tmp_path / "split", steps=4), system=SmallSystem(dropout=0.5), resume=True)
    assert equal_files(whole / "net.safetensors", split / "net.safetensors")


def test_finished_run_can_be_resumed_and_only_writes_again(tmp_path: Path) -> None:
    first = load_file(train(small_config(tmp_path, steps=2)) / "net.safetensors")
    again = load_file(train(small_config(tmp_path, steps=2), resume=True) / "net.safetensors")
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert len(losses(tmp_path)) == 2


def test_frozen_weights_stay_bit_for_bit(tmp_path: Path) -> None:
    system = SmallSystem()
    frozen, trained = frozen_digests(system), {key: value.clone() for key, value in system.net.state_dict().items()}
    train(small_config(tmp_path, steps=3, ema=0.5, accumulate=2), system=system)
    assert sorted(frozen) == ["frozen.bias", "frozen.weight"]
    assert frozen_digests(system) == frozen
    assert all(not torch.equal(value, system.net.state_dict()[key]) for key, value in trained.items())
    with torch.no_grad():
        system.frozen.bias[0] += 1e-7
    assert frozen_digests(system) != frozen


# -- checkpoints -------------------------------------------------------------------------------------------------


def test_last_and_best_checkpoints_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(Run, "validate", lambda run: next(values))
    train(small_config(tmp_path, steps=6, save_every=1, keep=2))
    found = checkpoints.Checkpoints(tmp_path, keep=2)
    assert [path.name for path in found.all()] == ["step-000002", "step-000005", "step-000006"]
    assert found.best() == tmp_path / "checkpoints/step-000002"


def test_killed_while_an_old_checkpoint_is_deleted_leaves_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def halfway(folder: Path, ignore_errors: bool = False) -> None:
        if folder.is_dir() and not ignore_errors:
            (folder / "state.json").unlink()
            raise Killed

    monkeypatch.setattr(checkpoints.shutil, "rmtree", halfway)
    with pytest.raises(Killed):
        train(small_config(tmp_path, steps=3, save_every=1, keep=1))
    monkeypatch.undo()
    train(small_config(tmp_path, steps=3, save_every=1, keep=1), resume=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]


def test_validation_is_the_loss_of_the_averaged_weights_on_held_out_clips(tmp_path: Path) -> None:
    system, source = SmallSystem(), NoiseSource()
    cfg = small_config(tmp_path, steps=2, save_every=2, ema=0.5, validate_clips=4)
    train(cfg, system=system, source=source)
    assert [index for index in source.drawn if index >= cfg.held_out] == [cfg.held_out + i for i in range(4)]
    logged = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["validation"]
    average = load_file(tmp_path / "checkpoints/step-000002/average/net.safetensors")
    system.net.load_state_dict(average)
    blocks = [[cfg.held_out, cfg.held_out + 1], [cfg.held_out + 2, cfg.held_out + 3]]
    from xdyna.data.source import draw_batch

    with torch.no_grad():
        expected = np.mean([system.eval()(draw_batch(source, block))["loss"].item() for block in blocks])
    assert logged == pytest.approx(expected, rel=1e-6)


def test_another_source_can_serve_for_validation(tmp_path: Path) -> None:
    source, held_out = NoiseSource(num_clips=8), NoiseSource(num_clips=2)
    train(small_config(tmp_path, steps=1, validate_clips=2), source=source, validation=held_out)
    assert held_out.drawn == [0, 1]
    assert max(source.drawn) < 8


@pytest.mark.parametrize("writer", ["write_parts", "save_tensors"])
def test_full_disk_loses_nothing_and_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    from xdyna.train import run as run_module

    train(small_config(tmp_path, steps=2, save_every=2))
    real = getattr(run_module, writer)

    def full(values: Any, path: Path) -> None:
        real(values, path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_module, writer, full)
    with pytest.raises(UserError, match=r"step-000004: cannot be written \(No space left .*last good .*step-000002; "):
        train(small_config(tmp_path, steps=4, save_every=2), resume=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
    monkeypatch.undo()
    train(small_config(tmp_path, steps=4, save_every=2), resume=True)
    assert len(losses(tmp_path)) == 4


def test_a_write_that_really_fails_is_one_line(tmp_path: Path) -> None:
    """The system refuses to let files grow beyond a few kB: safetensors and torch report it in ways of their own."""
    code = """if True:
        import resource, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        import loop_parts
        from xdyna.errors import UserError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for limit in (3000, 6000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                loop_parts.main(Path(sys.argv[2]) / str(limit), "steps=2")
            except UserError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(SCRIPT.parent), str(tmp_path)], capture_output=True, text=True, check=False,
        timeout=290,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for limit, line in zip((3000, 6000), lines, strict=True):
        assert f"{limit}/checkpoints/step-000002: cannot be written (" in line
        assert "File too large" in line or "inline_container" in line
        assert list((tmp_path / str(limit) / "checkpoints").iterdir()) == []


def test_half_written_checkpoint_of_a_killed_run_is_ignored_and_removed(tmp_path: Path) -> None:
    train(small_config(tmp_path, steps=2))
    half = tmp_path / "checkpoints/.step-000003.partial"
    half.mkdir()
    (half / "net.safetensors").write_bytes(b"half")
    train(small_config(tmp_path, steps=3), resume=True)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000002", "step-000003"]


def test_old_weights_stay_when_the_new_ones_cannot_be_written(tmp_path: Path) -> None:
    final = train(small_config(tmp_path, steps=1))
    before = (final / "net.safetensors").read_bytes()
    run = Run(small_config(tmp_path, steps=1), "small", SmallSystem(), NoiseSource(), resume=True, quiet=True)

    def write(folder: Path) -> None:
        (folder / "net.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="model: cannot be written"):
        run.finish(write)
    assert (final / "net.safetensors").read_bytes() == before


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "other"}, "a checkpoint of recipe 'small', wanted 'other'"),
        ({"source": NoiseSource(fingerprint="noise-2")}, r"was trained on other data \(noise-1, now noise-2\)"),
        ({"seed": 5}, "seed was 0, now 5"),
        ({"batch": 3}, "global_batch was 2, now 3"),
        ({"reuse": 2}, "reuse was 1, now 2"),
    ],
)
def test_checkpoint_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    train(small_config(tmp_path, steps=1))
    settings = (tmp_path / "config.json").read_text()
    recipe, source = changes.pop("recipe", "small"), changes.pop("source", NoiseSource())
    with pytest.raises(UserError, match=message):
        Run(small_config(tmp_path, steps=2, **changes), recipe, SmallSystem(), source, resume=True, quiet=True)
    assert (tmp_path / "config.json").read_text() == settings


def test_the_same_global_batch_in_other_pieces_goes_on(tmp_path: Path) -> None:
    source = NoiseSource()
    train(small_config(tmp_path, steps=1, batch=4), source=source)
    train(small_config(tmp_path, steps=2, batch=2, accumulate=2), source=source, resume=True)
    assert source.drawn == list(range(8))


def test_checkpoint_with_other_weights_names_them(tmp_path: Path) -> None:
    train(small_config(tmp_path, steps=1))
    system = SmallSystem()
    system.net.down_blocks[0][3].bias.requires_grad_(False)
    with pytest.raises(UserError, match=r"net/down_blocks.0.3.bias is in it but does not train now"):
        train(small_config(tmp_path, steps=2), system=system, resume=True)


def test_folder_of_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(small_config(tmp_path, steps=1))
    with pytest.raises(UserError, match="holds a run already"):
        train(small_config(tmp_path, steps=1))


def test_out_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file: cannot be written"):
        train(small_config(tmp_path / "file", steps=1))


def test_what_trains_must_be_saved(tmp_path: Path) -> None:
    system = SmallSystem()
    system.frozen.requires_grad_(True)
    with pytest.raises(ValueError, match=r"frozen.weight \(and 1 more\) trains but is in none of \['net'\]"):
        train(small_config(tmp_path, steps=1), system=system)


def test_nan_names_step_clips_and_last_good_checkpoint(tmp_path: Path) -> None:
    system = SmallSystem()
    cfg = small_config(tmp_path, steps=5, save_every=1, accumulate=2)
    wanted = (
        r"the loss became nan at step 2 \(clips: noise 10, noise 11\); last good checkpoint: .*step-000002; lower lr"
    )
    with pytest.raises(UserError, match=wanted):
        train(cfg, system=system, source=NoiseSource(bad=11))
    assert all(value.isfinite().all() for value in system.state_dict().values())
    assert len(losses(tmp_path)) == 2


def test_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path) -> None:
    system = SmallSystem()

    def spoil(run: Run, step: int) -> None:
        if step == 1:
            next(iter(run.trained.values())).grad.fill_(torch.inf)  # type: ignore[union-attr]

    with pytest.raises(UserError, match=r"the gradient's norm became inf at step 1 \(clips: noise 2, noise 3\)"):
        train(small_config(tmp_path, steps=3), system=system, on_step=spoil)
    assert all(value.isfinite().all() for value in system.state_dict().values())


# -- settings ----------------------------------------------------------------------------------------------------


def test_accumulated_passes_equal_one_large_batch(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 5, "optimizer": "sgd", "lr": 0.1}
    one = load_file(train(small_config(tmp_path / "one", batch=6, **settings)) / "net.safetensors")
    many = load_file(train(small_config(tmp_path / "many", batch=2, accumulate=3, **settings)) / "net.safetensors")
    assert all(torch.allclose(value, many[key], rtol=1e-5, atol=1e-6) for key, value in one.items())


def test_reused_clips_come_under_new_sample_numbers(tmp_path: Path) -> None:
    source = NoiseSource()
    seen = []
    run = Run(small_config(tmp_path, steps=4, reuse=2), "small", SmallSystem(), source, quiet=True)
    for _ in run.steps():
        for batch in run.batches():
            seen.append((batch.names, batch.indices.tolist()))
            run.backward(run.system(batch))
        run.update()
    first, second = ("noise 0", "noise 1"), ("noise 2", "noise 3")
    assert seen == [(first, [0, 1]), (first, [2, 3]), (second, [4, 5]), (second, [6, 7])]


def test_plan_covers_every_sample_once_in_aligned_blocks() -> None:
    plans = [Plan(batch=3, accumulate=2, processes=2, rank=rank) for rank in range(2)]
    blocks = [plan.samples(1, part) for plan in plans for part in range(2)]
    assert sorted(index for block in blocks for index in block) == list(range(12, 24))
    assert all(block.start % 3 == 0 for block in blocks)


def test_bf16_computes_so_and_trains_float32_weights(tmp_path: Path) -> None:
    system = SmallSystem()
    kinds = set()
    system.net.down_blocks[0][3].register_forward_hook(lambda module, args, output: kinds.add(output.dtype))
    train(small_config(tmp_path / "half", steps=2, precision="bf16"), system=system)
    assert kinds == {torch.bfloat16}
    assert {value.dtype for value in system.parameters()} == {torch.float32}
    train(small_config(tmp_path / "full", steps=2))
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "full"), rel=0.05)
    assert losses(tmp_path / "half") != losses(tmp_path / "full")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can do fp16")
def test_fp16_without_a_gpu_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="precision=fp16: needs a GPU"):
        train(small_config(tmp_path, steps=1, precision="fp16"))


def test_checkpointing_gives_the_same_gradients_with_fewer_kept_activations(tmp_path: Path) -> None:
    from small_models import small_controlnet

    from xdyna.controlnets.pose import PoseControlNet
    from xdyna.train.modules import enable_checkpointing

    def gradients(checkpointing: bool) -> tuple[list[torch.Tensor], int]:
        net = small_controlnet(PoseControlNet)
        if checkpointing:
            enable_checkpointing(net)
        kept: list[int] = []

        def pack(value: torch.Tensor) -> torch.Tensor:
            kept.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            down, mid = net(
                torch.ones(2, 4, 8, 8), torch.tensor(3), torch.ones(2, 4, 16), torch.ones(2, 3, 16, 16),
                return_dict=False,
            )  # fmt: skip
        (sum(value.square().mean() for value in down) + mid.square().mean()).backward()
        return [value.grad for value in net.parameters() if value.grad is not None], sum(kept)

    plain, kept_plain = gradients(False)
    again, kept_again = gradients(True)
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-8) for one, other in zip(plain, again, strict=True))
    assert kept_again < kept_plain / 2


def test_eight_bit_optimizer(tmp_path: Path) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"optimizer=adamw8bit: needs bitsandbytes; pip install bitsandbytes"):
            train(small_config(tmp_path, steps=1, optimizer="adamw8bit"))
        pytest.skip("bitsandbytes is not installed: only the message was tested")
    train(small_config(tmp_path, steps=2, optimizer="adamw8bit"))
    train(small_config(tmp_path, steps=4, optimizer="adamw8bit"), resume=True)
    assert all(np.isfinite(losses(tmp_path)))


@pytest.mark.parametrize(
    ("schedule", "cooldown", "expected"),
    [
        ("constant", 4, [0.5, 1, 1, 1, 1, 1]),
        ("linear", 3, [0.5, 1, 1, 1, 2 / 3, 1 / 3]),
        ("linear", None, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", None, [0.5, 1, 1, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_learning_rate_over_time(schedule: str, cooldown: int | None, expected: list[float]) -> None:
    assert [rate_factor(step, 6, 2, cooldown, schedule) for step in range(6)] == pytest.approx(expected)


def test_logged_rate_follows_the_schedule(tmp_path: Path) -> None:
    train(small_config(tmp_path, steps=4, lr=0.01, schedule="cosine", warmup=1, cooldown=None))
    rates = [json.loads(line)["lr"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.01, 0.01, 0.0075, 0.0025])


def test_average_is_put_in_and_taken_out() -> None:
    value = torch.nn.Parameter(torch.ones(1))
    average = Average({"value": value}, decay=0.9)
    with torch.no_grad():
        value.fill_(2.0)
    average.update(step=0)
    with average.in_place():
        assert value.item() == pytest.approx(1.9)  # the first step follows fast: 1/10 of the old value stays
    assert value.item() == 2.0


def test_parameters_are_counted_once() -> None:
    system = SmallSystem()
    assert count_parameters(system, trainable=True) == sum(p.numel() for p in system.net.parameters())
    assert count_parameters(system, system.net) == sum(p.numel() for p in system.parameters())


# -- who is told what --------------------------------------------------------------------------------------------


class Notes:
    """A watcher that writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def on_start(self, run: Any) -> None:
        self.lines.append(("start", run.step))

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append(("log", step, sorted(values)))

    def on_sample(self, step: int, folder: Path) -> None:
        self.lines.append(("sample", step, (folder / f"sample-{step}.txt").is_file()))

    def on_end(self, step: int) -> None:
        self.lines.append(("end", step))


def test_watchers_hear_of_steps_samples_and_the_end(tmp_path: Path) -> None:
    notes = Notes()
    seen = []

    def sampler(folder: Path, step: int) -> None:
        seen.append((step, torch.is_grad_enabled()))
        (folder / f"sample-{step}.txt").write_text("")

    train(small_config(tmp_path, steps=3, sample_every=2), watchers=[notes], sampler=sampler)
    keys = ["grad", "loss", "lr", "time", "timestep"]
    assert notes.lines == [
        ("start", 0), ("log", 1, keys), ("log", 2, keys), ("sample", 2, True), ("log", 3, keys), ("sample", 3, True),
        ("end", 3),
    ]  # fmt: skip
    assert seen == [(2, False), (3, False)]


def test_samples_show_the_averaged_weights(tmp_path: Path) -> None:
    system = SmallSystem()
    shown = {}

    def sampler(folder: Path, step: int) -> None:
        shown.update({key: value.clone() for key, value in system.net.state_dict().items()})

    final = train(small_config(tmp_path, steps=2, sample_every=2, ema=0.9), system=system, sampler=sampler)
    wanted = load_file(final / "net.safetensors")
    assert all(torch.equal(value, wanted[key]) for key, value in shown.items())


def test_problems_of_the_data_are_told_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Flawed(NoiseSource):
        def check(self) -> list[str]:
            return [f"clip-{number}.mp4: left out: broken" for number in range(25)]

    Run(small_config(tmp_path, steps=1), "small", SmallSystem(), Flawed())
    said = capsys.readouterr().out
    assert "data: clip-19.mp4: left out: broken" in said
    assert "and 5 more, see" in said
    skipped = tmp_path / "skipped.txt"
    assert len(skipped.read_text().splitlines()) == 25
    skipped.write_text(skipped.read_text() + "found broken in training\n")
    Run(small_config(tmp_path, steps=1), "small", SmallSystem(), Flawed())
    assert len(skipped.read_text().splitlines()) == 26


def test_data_without_a_usable_clip_stops_before_the_folder_is_made(tmp_path: Path) -> None:
    class Empty(NoiseSource):
        def check(self) -> list[str]:
            raise UserError("clips: nothing to train on")

    with pytest.raises(UserError, match="nothing to train on"):
        train(small_config(tmp_path / "run", steps=1), source=Empty())
    assert not (tmp_path / "run").exists()


def test_a_signal_to_workers_too_ends_with_the_step_in_hand(tmp_path: Path) -> None:
    """SIGTERM to all processes of a job, as schedulers send it, still ends with the step in hand and a checkpoint."""
    children: set[int] = set()

    def stop(run: Run, step: int) -> None:
        if step == 2:
            children.update(child.pid for child in multiprocessing.active_children() if child.pid)
            everybody = [str(process) for process in (*children, os.getpid())]
            subprocess.run(["kill", "-TERM", *everybody], check=True)  # from outside: torch lets its own pass
            time.sleep(1.0)  # for news of workers that died to arrive

    cfg = small_config(tmp_path, steps=50, workers=2)
    train(cfg, on_step=stop)
    assert len(children) == 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]
