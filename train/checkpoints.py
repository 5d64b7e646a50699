"""Checkpoints of a run: written aside and renamed, the last few and the best kept, read back with checks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from xdyna.errors import UserError

State = dict[str, Any]


class Checkpoints:
    """The folder `checkpoints/` of a run; each checkpoint is a folder `step-NNNNNN` in it.

    A checkpoint holds `PART.safetensors` (what trains of each part), `average/PART.safetensors` (its moving average),
    `optimizer.pt` and `state.json`. It is written beside its final name and renamed, so a kill or a full disk at any
    moment leaves whole ones only.

    Args:
        folder: of the run.
        keep: how many of the last ones stay; the one with the lowest validation loss stays besides.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder / "checkpoints", keep

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"), key=lambda path: int(path.name[5:]))

    def last(self) -> Path | None:
        """The newest one."""
        return next(iter(reversed(self.all())), None)

    def best(self) -> Path | None:
        """The one with the lowest validation loss; None where no loss was taken."""
        losses = {path: read_state(path).get("validation") for path in self.all()}
        known = {path: loss for path, loss in losses.items() if loss is not None}
        return min(known, key=lambda path: known[path]) if known else None

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:06d}"

    def write(self, state: State, fill: Callable[[Path], None]) -> Path:
        """Write the checkpoint of `state["step"]`, then drop old ones.

        Args:
            state: goes into `state.json`.
            fill: writes all other files into the folder it is given.
        Raises:
            UserError: the disk is full or cannot be written; what was saved before is untouched.
        """
        final = self.path(state["step"])
        if final.exists():
            return final

        def write(folder: Path) -> None:
            fill(folder)
            (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

        write_aside(final, write, f"last good checkpoint: {self.last() or 'none'}; make room and --resume")
        self._drop_old()
        return final

    def clear_partial(self) -> None:
        """Remove what a killed run has left half written or half deleted."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _drop_old(self) -> None:
        best = self.best()
        for old in self.all()[: -self.keep]:
            if old != best:
                shutil.rmtree(old.rename(_partial(old)))  # a kill leaves nothing half deleted under a whole one's name


def read_state(checkpoint: Path) -> State:
    """`state.json` of a checkpoint."""
    state: State = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state


def write_parts(values: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors named ``part/key`` as `PART.safetensors` with the part's own keys."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in values.items():
        part, _, key = name.partition("/")
        parts.setdefault(part, {})[key] = value.detach().cpu().contiguous()
    for part, tensors in parts.items():
        save_file(tensors, folder / f"{part}.safetensors")


def read_parts(folder: Path) -> dict[str, Tensor]:
    """The tensors that `write_parts` wrote."""
    return {
        f"{file.stem}/{key}": value
        for file in sorted(folder.glob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def check_same_tensors(checkpoint: Path, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint whose tensors are not those of the run.

    Raises:
        UserError: one is missing, left over, or of another shape.
    """
    advice = "resume with the settings the run was started with (config.json), or use another --out"
    for name in sorted({*got, *wanted}):
        if name not in got or name not in wanted:
            where = "trains now but is not in it" if name in wanted else "is in it but does not train now"
            raise UserError(f"{checkpoint}: {name} {where}; {advice}")
        if got[name].shape != wanted[name].shape:
            shapes = f"{list(got[name].shape)}, wanted {list(wanted[name].shape)}"
            raise UserError(f"{checkpoint}: {name} has shape {shapes}; {advice}")


def check_state(checkpoint: Path, state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint with another recipe, other data, or the data in another order.

    Args:
        checkpoint: for messages.
        state: what is written in it.
        now: what the run would write.
    Raises:
        UserError: they do not fit.
    """
    if state["recipe"] != now["recipe"]:
        raise UserError(f"{checkpoint}: a checkpoint of recipe {state['recipe']!r}, wanted {now['recipe']!r}")
    if state["data"] != now["data"]:
        raise UserError(
            f"{checkpoint}: was trained on other data ({state['data']}, now {now['data']}); "
            "resume with the same data and world, or start another --out with --init"
        )
    for key, advice in {
        "seed": "use the same --seed",
        "global_batch": "batch x accumulate x processes has to stay the same",
        "reuse": "use the same reuse",
    }.items():
        if state[key] != now[key]:
            raise UserError(f"{checkpoint}: {key} was {state[key]}, now {now[key]}, so other data would come; {advice}")


def write_aside(final: Path, write: Callable[[Path], Any], advice: str) -> None:
    """Have a folder written beside its name and renamed, taking the place of an older one.

    Args:
        final: its name.
        write: fills the folder it is given.
        advice: what to do where there is no room, for the message.
    Raises:
        UserError: the disk is full or cannot be written; what was there before is untouched.
    """
    partial = _partial(final)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        _flush(partial)
        if final.is_dir():
            shutil.rmtree(final)
        partial.rename(final)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not is_disk_error(error):
            raise
        raise UserError(f"{final}: cannot be written ({disk_reason(error)}); {advice}") from error


def _partial(final: Path) -> Path:
    """Where a folder lies while it is written or deleted."""
    return final.with_name(f".{final.name}.partial")


def is_disk_error(error: BaseException) -> bool:
    """Whether writing failed for want of room or because of the disk, whoever reports it."""
    if isinstance(error, OSError):
        return True
    text = str(error)  # safetensors and torch have their own errors for a failed write
    return type(error).__name__ == "SafetensorError" or "PytorchStreamWriter" in text or "inline_container" in text


def disk_reason(error: BaseException) -> str:
    """Why a write failed, in a few words."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error).splitlines()[0]


def _flush(folder: Path) -> None:
    """Bring a folder's files to the disk before it gets its final name."""
    for file in (path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def save_tensors(value: Any, path: Path) -> None:
    """`torch.save`; read back with `load_tensors`."""
    torch.save(value, path)


def load_tensors(path: Path) -> Any:
    """Read what `save_tensors` wrote; tensors and plain values only, on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)
