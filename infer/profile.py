"""Where a job's time and memory went: a table of its stages, and a trace for chrome://tracing or Perfetto.

Only measuring: nothing that a job computes depends on it. A GPU is waited for at the ends of stretches, so that time
lands where it belongs; a profiled job is therefore a little slower.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from xdyna.errors import UserError
from xdyna.files import make_folder, written_whole
from xdyna.spans import no_span

if TYPE_CHECKING:
    import torch

    from xdyna.denoise import Predictor

Item = TypeVar("Item")

TABLE, FACTS, TRACE = "profile.md", "profile.json", "trace.json"
#: Stretches that are kept for the trace; the table counts all.
MOST_SPANS = 20_000
#: Calls of the UNet whose operations are traced.
TRACED_CALLS = 2
MIB = 1 << 20
_MARK = "xdyna: clocks are compared here"
_STAGES = 1  # number of the process that stages are shown under in the trace


@dataclass
class Row:
    """A stage, in all its stretches together.

    Attributes:
        path: its name, after those of the stages it is part of.
        beside: it ran in a thread beside the main one.
        calls: stretches.
        seconds: in them, parts included.
        host: the most bytes of memory that the process held in them; None where that cannot be told.
        device: the most bytes of tensors on the GPU; None without one.
    """

    path: tuple[str, ...]
    beside: bool
    calls: int = 0
    seconds: float = 0.0
    host: int | None = None
    device: int | None = None


@dataclass
class _Open:
    path: tuple[str, ...]
    began_s: float
    host: int = 0
    device: int = 0


class NoProfile:
    """What a job that is not profiled runs under."""

    def span(self, name: str) -> AbstractContextManager[object]:
        return no_span(name)

    def stage(self, name: str, done: int, total: int) -> None: ...

    def on(self, device: torch.device) -> None: ...

    def steps(self, inner: Predictor, first: int) -> Predictor:
        return inner

    def stepped(self) -> None: ...

    def called(self) -> None: ...

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def each(self, name: str, items: Iterable[Item]) -> Iterable[Item]:
        return items

    def write(self, about: str, num_frames: int) -> Path | None:
        return None


class Profile(NoProfile):
    """Measures one job.

    Args:
        folder: what is written into; its files of an earlier run are replaced.
        clock: seconds.

    Raises:
        UserError: `folder` is a file.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file, wanted a folder (or nothing) there for --profile")
        self.folder = folder
        self._clock, self._began_s = clock, clock()
        self._main = threading.get_ident()
        self._lock = threading.RLock()
        self._open: dict[int, list[_Open]] = {}
        self._rows: dict[tuple[bool, tuple[str, ...]], Row] = {}
        self._spans: list[tuple[str, str, float, float]] = []
        self._num_dropped = 0
        self._memory = _Memory()
        self._device: torch.device | None = None
        self._operations = _Operations()
        self._start: _Open | None = self._enter("open, import")

    def on(self, device: torch.device) -> None:
        """Say what the networks run on, once files are opened and libraries imported."""
        if self._start is not None:
            self._leave(self._start)
            self._start = None
        self._device = device
        self._memory.device = device if device.type == "cuda" else None

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A stretch of a stage; stretches within it are its parts."""
        own = self._enter(name)
        try:
            yield
        finally:
            self._leave(own)

    def stage(self, name: str, done: int, total: int) -> None:
        """Progress of a stage: it begins when it is first told of, and ends when all is done or another begins."""
        stack = self._open.get(threading.get_ident(), [])
        told = bool(stack) and stack[-1].path[-1] == f"{name} "  # the space marks what was begun here
        if stack and stack[-1].path[-1].endswith(" ") and (not told or (total and done >= total)):
            self._leave()
            told = told and done >= total
        if not told and not (total and done >= total):
            self._enter(f"{name} ")

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; a call of it is a stretch."""

        def called(*args: Any, **kwargs: Any) -> Any:
            with self.span(name):
                return function(*args, **kwargs)

        return called

    def each(self, name: str, items: Iterable[Item]) -> Iterable[Item]:
        """The same items; what it takes to get each is a stretch."""
        iterator = iter(items)
        while True:
            with self.span(name):
                item = next(iterator, iterator)
            if item is iterator:
                return
            yield item  # type: ignore[misc]  # the iterator itself stands for the end

    def steps(self, inner: Predictor, first: int) -> Predictor:
        """The same predictions; what comes between two of them is the scheduler's.

        Args:
            inner: predicts.
            first: step that denoising begins with.
        """

        def predict(*args: Any, step: int = 0, num_steps: int = 1, **kwargs: Any) -> Any:
            # The second step, as the first holds what is only done once.
            if step == min(first + 1, num_steps - 1):
                with self.span("tracing"):
                    self._operations.start(self._device, self._clock)
            try:
                return inner(*args, step=step, num_steps=num_steps, **kwargs)
            finally:
                if self._operations.running:
                    with self.span("tracing"):
                        self._operations.stop()
                self._enter("scheduler")

        return predict

    def stepped(self) -> None:
        """The scheduler has made its step."""
        self._leave()  # what `steps` began

    def called(self) -> None:
        """The UNet was called once more."""
        if self._operations.count():
            with self.span("tracing"):
                self._operations.stop()

    def write(self, about: str, num_frames: int) -> Path:
        """Write table, facts and trace, and return their folder.

        Args:
            about: one line that says what was measured.
            num_frames: of the result.

        Raises:
            UserError: they cannot be written.
        """
        whole_s = self._clock() - self._began_s
        table = Table(about, num_frames, whole_s, list(self._rows.values()), self._num_dropped)
        make_folder(self.folder)
        with written_whole(self.folder / TABLE) as part:
            part.write_text(table.text() + "\n", encoding="utf-8")
        with written_whole(self.folder / FACTS) as part:
            part.write_text(json.dumps(table.facts(), indent=2) + "\n", encoding="utf-8")
        with written_whole(self.folder / TRACE) as part:
            trace = self._operations.trace(part)
            trace["traceEvents"] += self._span_events(self._operations.offset_us(trace["traceEvents"]))
            part.write_text(json.dumps(trace, separators=(",", ":")), encoding="utf-8")
        return self.folder

    # --- stretches --------------------------------------------------------------------------------------------------

    def _enter(self, name: str) -> _Open:
        with self._lock:
            self._remember_peaks()
            stack = self._open.setdefault(threading.get_ident(), [])
            above = stack[-1].path if stack else ()
            stack.append(_Open((*above, name), self._clock()))
            return stack[-1]

    def _leave(self, own: _Open | None = None) -> None:
        """End a stretch, by default the last that began, and with it those within it that nobody ended."""
        with self._lock:
            self._remember_peaks()
            stack, now_s = self._open[threading.get_ident()], self._clock()
            while stack:
                ended = stack.pop()
                self._count(ended, now_s)
                if own is None or ended is own:
                    return

    def _count(self, ended: _Open, now_s: float) -> None:
        beside, path = threading.get_ident() != self._main, tuple(name.strip() for name in ended.path)
        row = self._rows.setdefault((beside, path), Row(path, beside))
        row.calls += 1
        row.seconds += now_s - ended.began_s
        row.host = max(row.host or 0, ended.host) if self._memory.tells_host else None
        row.device = max(row.device or 0, ended.device) if self._memory.device is not None else None
        if len(self._spans) < MOST_SPANS:
            place = "main" if not beside else threading.current_thread().name.removeprefix("xdyna-")
            self._spans.append((path[-1], place, ended.began_s, now_s))
        else:
            self._num_dropped += 1

    def _remember_peaks(self) -> None:
        """Let every stretch that is under way know how much memory was held since the last look."""
        host, device = self._memory.since_last(wait=threading.get_ident() == self._main)
        for stack in self._open.values():
            for one in stack:
                one.host, one.device = max(one.host, host), max(one.device, device)

    def _span_events(self, offset_us: float) -> list[dict[str, Any]]:
        places = list(dict.fromkeys(place for _, place, _, _ in self._spans))
        names: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": _STAGES, "tid": 0, "args": {"name": "xdyna: stages"}}
        ]
        names += [
            {"ph": "M", "name": "thread_name", "pid": _STAGES, "tid": number, "args": {"name": place}}
            for number, place in enumerate(places, 1)
        ]
        return names + [
            {
                "ph": "X", "cat": "xdyna", "name": name, "pid": _STAGES, "tid": 1 + places.index(place),
                "ts": round(began_s * 1e6 + offset_us, 3), "dur": round((ended_s - began_s) * 1e6, 3),
            }
            for name, place, began_s, ended_s in self._spans
        ]  # fmt: skip


@dataclass
class _Memory:
    """The most memory that was held between two looks."""

    device: torch.device | None = None
    tells_host: bool = field(init=False)

    def __post_init__(self) -> None:
        self.tells_host = _host_peak() is not None

    def since_last(self, *, wait: bool) -> tuple[int, int]:
        """Bytes of the process, and of tensors on the GPU; 0 where it cannot be told.

        Args:
            wait: for the GPU, so that its time lands in the stretch that caused it.
        """
        on_device = 0
        if self.device is not None:
            import torch

            if wait and not torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize(self.device)
            on_device = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        return _host_peak() or 0, on_device


def _host_peak() -> int | None:
    """Bytes of memory that the process held at most since the last call; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return peak
    return None


class _Operations:
    """The operations of a few calls, as torch's profiler sees them."""

    def __init__(self) -> None:
        self._profiler: Any = None
        self._calls = 0
        self._marked_s = 0.0
        self.running = False

    def start(self, device: torch.device | None, clock: Callable[[], float]) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile, record_function

        activities = [ProfilerActivity.CPU]
        if device is not None and device.type == "cuda" and torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities)
        self._profiler.start()
        self.running = True
        with record_function(_MARK):
            self._marked_s = clock()

    def count(self) -> bool:
        """One call more; tells whether that is enough."""
        self._calls += self.running
        return self.running and self._calls >= TRACED_CALLS

    def stop(self) -> None:
        self.running = False
        self._profiler.stop()

    def trace(self, part: Path) -> dict[str, Any]:
        """What Chrome's trace viewer reads; without events where nothing was traced.

        Args:
            part: a file to write on the way.
        """
        if self._profiler is None:
            return {"traceEvents": [], "displayTimeUnit": "ms"}
        self._profiler.export_chrome_trace(str(part))
        self._profiler = None
        trace: dict[str, Any] = json.loads(part.read_text(encoding="utf-8"))
        trace.pop("traceName", None)  # the name of the unfinished file
        return trace

    def offset_us(self, events: list[dict[str, Any]]) -> float:
        """What to add to our clock to get the trace's, microseconds."""
        mark = next((event for event in events if event.get("name") == _MARK and "ts" in event), None)
        return 0.0 if mark is None else float(mark["ts"]) - self._marked_s * 1e6


@dataclass(frozen=True)
class Table:
    """What was measured.

    Attributes:
        about: one line.
        num_frames: of the result.
        whole_s: seconds of the job.
        rows: its stages.
        num_dropped: stretches that are not in the trace.
    """

    about: str
    num_frames: int
    whole_s: float
    rows: list[Row]
    num_dropped: int = 0

    def lines(self) -> list[tuple[str, Row]]:
        """Name as it is shown, and stage: parts under what they are part of, with what is left over of each."""
        shown: list[tuple[str, Row]] = []
        for beside in (False, True):
            rows = [row for row in self.rows if row.beside == beside]
            tops = [row for row in rows if len(row.path) == 1]
            for row in tops:
                self._add(row, rows, shown)
            if not beside:
                rest_s = self.whole_s - sum(row.seconds for row in tops)
                shown.append(("the rest", Row(("the rest",), False, 1, max(0.0, rest_s))))
        return shown

    def _add(self, row: Row, rows: list[Row], shown: list[tuple[str, Row]]) -> None:
        indent = "- " * (len(row.path) - 1)
        shown.append((indent + row.path[-1], row))
        parts = [one for one in rows if one.path[:-1] == row.path]
        for part in parts:
            self._add(part, rows, shown)
        if parts:
            rest_s = max(0.0, row.seconds - sum(part.seconds for part in parts))
            shown.append((f"{indent}- the rest", Row((*row.path, "the rest"), row.beside, row.calls, rest_s)))

    @property
    def frames_per_s(self) -> float:
        return self.num_frames / self.whole_s if self.whole_s > 0 else 0.0

    def text(self) -> str:
        """Markdown."""
        with_device = any(row.device is not None for row in self.rows)
        head = ["stage", "seconds", "share", "ms/frame", "calls", "host MiB"] + ["GPU MiB"] * with_device
        body = []
        beside_told = False
        for name, row in self.lines():
            if row.beside and not beside_told:
                beside_told = True
                body.append(["*beside, in other threads*", *[""] * (len(head) - 1)])
            cells = [name, f"{row.seconds:.2f}", f"{100 * row.seconds / (self.whole_s or 1):.1f} %"]
            cells += [f"{1000 * row.seconds / max(1, self.num_frames):.1f}", str(row.calls), _mib(row.host)]
            body.append(cells + [_mib(row.device)] * with_device)
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]

        def line(cells: list[str]) -> str:
            first, *others = cells
            padded = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))]
            return f"| {' | '.join(padded)} |"

        ruler = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (w + 1)}:|" for w in widths[1:])
        what = (
            f"{self.num_frames} frames in {self.whole_s:.1f} s: {self.frames_per_s:.3g} frames/s. "
            "Shares are of the whole job; memory is the most that was held while the stage ran."
        )
        return "\n".join([self.about, "", what, "", line(head), ruler, *map(line, body)])

    def facts(self) -> dict[str, Any]:
        """The same for programs; bytes, seconds."""
        return {
            "about": self.about,
            "frames": self.num_frames,
            "seconds": self.whole_s,
            "frames_per_s": self.frames_per_s,
            "stages": [
                {
                    "path": list(row.path), "beside": row.beside, "calls": row.calls, "seconds": row.seconds,
                    "host_bytes": row.host, "device_bytes": row.device,
                }
                for _, row in self.lines()
            ],
            "spans_not_in_trace": self.num_dropped,
        }  # fmt: skip


def _mib(count: int | None) -> str:
    return "-" if count is None else f"{count / MIB:.0f}"


def profile_folder(output: Path) -> Path:
    """``out.mp4`` -> ``out.mp4.profile``."""
    return output.with_name(f"{output.name}.profile")
