"""What a job says when the machine lets it down: full memory, a GPU that is gone, Ctrl-C between two steps."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from xdyna.errors import UserError

if TYPE_CHECKING:
    import torch

    from xdyna.configs.animate import AnimateConfig
    from xdyna.infer.animate import OnProgress
    from xdyna.infer.work import Work

#: What CUDA says when a GPU broke down under a process, which cannot use it any more, whatever it tries.
_LOST = (
    "unspecified launch failure",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "hardware stack error",
    "the launch timed out and was terminated",
    "device(s) is/are busy or unavailable",
    "no cuda-capable device is detected",
    "device lost",
    "gpu is lost",
    "fallen off the bus",
    "cuda error: unknown error",
)

logger = logging.getLogger("xdyna")


class DeviceLost(UserError):
    """The device is gone for this process: no other job can run on it either."""


def is_device_lost(error: BaseException) -> bool:
    """Whether an error tells that a GPU broke down. A kernel that reads past its memory is a defect, not this."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(reason in text for reason in _LOST)


@contextmanager
def faults_told(config: AnimateConfig, device: torch.device, work: Work) -> Iterator[None]:
    """Say in one line what went wrong with the device, and what the user can do.

    Args:
        config: with preset and model's defaults filled in.
        device: that runs the job.
        work: of the job.

    Raises:
        UserError: the device's memory ran out.
        DeviceLost: the device broke down.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        sampling = config.sampling()
        width, height = sampling.size_wh
        half = "" if config.dtype in ("float16", "bfloat16") else ", or take --dtype float16"
        raise UserError(  # batches were lowered by now, see `xdyna.infer.engine.fit`
            f"--device {device}: out of memory at {width}x{height} px with windows of {sampling.window} frames; "
            f"lower --size or --window{half}"
        ) from None
    except RuntimeError as error:
        if not is_device_lost(error):
            raise
        state = work.load()
        if state is None:
            next_s = "nothing was saved yet: the same command begins anew (--resume saves from the first step on)"
        else:
            next_s = f"the same command goes on from step {state.step + 1}"
        reason = str(error).strip().splitlines()[0][:200]
        raise DeviceLost(f"--device {device}: the GPU was lost ({reason}); once it is back, {next_s}") from error


@contextmanager
def between_steps(on_progress: OnProgress, may_wait: Callable[[], bool]) -> Iterator[OnProgress]:
    """Under the command, let the first Ctrl-C wait for the step that is under way, so that its work is not lost.

    The second one stops at once. Where a program of the user's calls, Ctrl-C stays what that program makes of it.

    Args:
        on_progress: told of progress.
        may_wait: whether steps are saved; else the first Ctrl-C stops at once.

    Yields:
        What to tell of progress in its place: it raises `KeyboardInterrupt` after the step.
    """
    before = signal.getsignal(signal.SIGINT)
    is_ours = callable(before) and before is not signal.default_int_handler
    if not is_ours or threading.current_thread() is not threading.main_thread():
        yield on_progress
        return
    asked = False

    def answer(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        signal.signal(signal.SIGINT, before)
        if may_wait():
            asked = True
            with suppress(RuntimeError):  # it came while another line was printed
                logger.warning("Ctrl-C: this step is finished and saved first; Ctrl-C again stops at once")
        else:
            assert callable(before)
            before(signum, frame)

    def told(stage: str, done: int, total: int) -> None:
        on_progress(stage, done, total)
        if asked and stage == "denoise":
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a third one would disturb the clean-up
            logger.info("stopped after step %d of %d; the same command goes on with what is saved", done, total)
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, answer)
    try:
        yield told
    finally:
        if signal.getsignal(signal.SIGINT) is answer:
            signal.signal(signal.SIGINT, before)
