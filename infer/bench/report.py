"""A benchmark's record as files: JSON with every run, Markdown with what it comes to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from xdyna.files import PartPath, writing_error
from xdyna.infer.bench.bench import OURS, Record
from xdyna.infer.bench.figures import Cost, Spread
from xdyna.windows import DEFAULT_OVERLAP, DEFAULT_SIZE

_PLANS = {
    "official": "the official code's order of work: window by window, both halves of the guidance in full, "
    "ControlNets anew in every window, the VAE a frame at a time",
    "diffusers": "diffusers' `AnimateDiffControlNetPipeline`, a run for each of our 16-frame windows, overlaps "
    "averaged; **without** reference, Dynamics-Adapter and image prompt",
    "freenoise": "the same pipeline with FreeNoise, the clip in one piece; **without** reference, Dynamics-Adapter and "
    "image prompt",
    "ours": "the engine's exact mode, the default of `xdyna animate`, on the windows of the other plans",
    "official-plain": "`official` with the formulas that calls with gradients take: norms that move frames, no work in "
    "place",
    "ours-open": "the same on our own windows, which never wrap",
}


def write_record(record: Record, folder: Path) -> tuple[Path, Path]:
    """Write `NAME.md` and `NAME.json`, named by day, model, size and device; older records are never replaced.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_error(folder, error) from error
    stem = _free_stem(folder, _stem(record))
    markdown, data = folder / f"{stem}.md", folder / f"{stem}.json"
    for path, text in ((markdown, to_markdown(record)), (data, json.dumps(record.to_json(), indent=1) + "\n")):
        part = PartPath(path)
        try:
            part.path.write_text(text, encoding="utf-8")
        except OSError as error:
            part.discard()
            raise writing_error(path, error) from error
        part.commit()
    return markdown, data


def _stem(record: Record) -> str:
    settings = record.settings
    model = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(settings["model"]).name)
    kind = "flops" if settings["flops_only"] else settings["device"].split(":")[0]
    return f"{record.date[:10]}-{model}-{settings['size'][0]}x{settings['size'][1]}-{kind}"


def _free_stem(folder: Path, stem: str) -> str:
    number, free = 1, stem
    while (folder / f"{free}.md").exists() or (folder / f"{free}.json").exists():
        number += 1
        free = f"{stem}-{number}"
    return free


def to_markdown(record: Record) -> str:
    """The whole record as one page."""
    settings = record.settings
    width, height = settings["size"]
    lines = [
        f"# {settings['model']} at {width}x{height}, {record.date[:10]}",
        "",
        f"`{record.command}`",
        "",
        f"{settings['steps']} steps, guidance {settings['guidance']:g}, {settings['schedule']} windows of "
        f"{DEFAULT_SIZE} frames that share {DEFAULT_OVERLAP}, {settings['dtype']} on {settings['device']}, "
        "nothing compiled.",
        "",
        *_machine(record),
        "",
        "Plans:",
        "",
        *(f"- `{plan}`: {_PLANS[plan]}" for plan in record.plans),
        "",
        *_operations(record),
    ]
    if not settings["flops_only"]:
        lines += ["", *_times(record), "", *_memory(record), "", *_ratios(record), "", *_growth(record)]
    return "\n".join(lines) + "\n"


def _machine(record: Record) -> list[str]:
    machine = record.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f"{machine['gpu']}, CUDA {machine['cuda']}; " if "gpu" in machine else ""
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    return [
        f"{gpu}{machine['processor']}, {machine['cores']} cores ({machine['vector_instructions']}), "
        f"{machine['threads']} threads, {machine['memory_gb']} GB, {machine['system']}; load before: "
        f"{machine['load_before']}. Python {machine['python']}, {versions}{commit}."
    ]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _operations(record: Record) -> list[str]:
    """Per plan and length: a count, so the same on every machine."""
    most = max(counts["total"] for by_frames in record.flops.values() for counts in by_frames.values())
    unit, scale = ("TFLOP", 1e12) if most > 1e12 else ("GFLOP", 1e9)
    others = [plan for plan in record.plans if plan != OURS] if OURS in record.plans else []
    rows = []
    for n in record.frames:
        counts = {plan: record.flops[plan][n] for plan in record.plans}
        rows.append(
            [
                str(n),
                str(record.num_windows[n]),
                *(f"{count['total'] / scale:.4g} ({count['decode'] / scale:.3g})" for count in counts.values()),
                *(f"{record.flops_ratio(plan, n):.3f}" for plan in others),
            ]
        )
    head = ["frames", "windows", *record.plans, *(f"{plan} / {OURS}" for plan in others)]
    return [f"## Operations, {unit} of a whole run (of that, decoding)", "", *_table(head, rows)]


def _times(record: Record) -> list[str]:
    costs = record.costs()
    rows = []
    for n in record.frames:
        for plan in record.plans:
            if (plan, n) not in costs:
                rows.append([str(n), plan, record.failed.get(plan, {}).get(n, "not run"), "", "", ""])
                continue
            c = costs[plan, n]
            seconds = c.seconds.median
            rows.append(
                [
                    str(n),
                    plan,
                    _spread(c.seconds),
                    _per_frame(record, plan, n, seconds),
                    _spread(c.cpu_seconds),
                    f"{record.flops[plan][n]['total'] / 1e9 / seconds:.4g}",
                ]
            )
    repeats = record.settings["repeats"]
    head = ["frames", "plan", "seconds", "seconds a frame", "CPU seconds", "GFLOP/s"]
    return [
        f"## Time: median of {repeats} rounds (least to greatest)",
        "",
        "From pictures in memory to frames in memory; the model is loaded and warm.",
        "",
        *_table(head, rows),
    ]


def _per_frame(record: Record, plan: str, num_frames: int, seconds: float) -> str:
    """Of the clip; for a plan that denoises every window to its end also of the frames in all windows together."""
    if plan != "diffusers" or record.num_windows[num_frames] == 1:
        return f"{seconds / num_frames:.3g}"
    return f"{seconds / num_frames:.3g} ({seconds / (record.num_windows[num_frames] * DEFAULT_SIZE):.3g} of a window's)"


def _memory(record: Record) -> list[str]:
    costs = record.costs()
    rows = [
        [str(n), *(_megabytes(costs[plan, n]) if (plan, n) in costs else "-" for plan in record.plans)]
        for n in record.frames
    ]
    what = "allocated on the device" if record.settings["device"].startswith("cuda") else "resident"
    return [
        f"## Peak memory, MB {what} (of that, added by the run to the loaded model)",
        "",
        *_table(["frames", *record.plans], rows),
    ]


def _ratios(record: Record) -> list[str]:
    rows = []
    for n in record.frames:
        for plan in record.plans:
            spread, flops = record.times_ours(plan, n), record.flops_ratio(plan, n)
            if plan == OURS or spread is None or flops is None:
                continue
            rows.append([str(n), plan, f"{flops:.3f}", _spread(spread, 3), f"{100 * spread.median / flops:.0f} %"])
    head = ["frames", "plan", "times our operations", "times our seconds", "seconds / operations"]
    lines = ["## Against ours, round by round: median (least to greatest)", "", *_table(head, rows)]
    if record.latents_apart:
        apart = ", ".join(f"{value:.2g} at {n} frames" for n, value in record.latents_apart.items())
        lines += ["", f"Greatest difference of the final latents, official to ours: {apart}."]
    return lines


def _growth(record: Record) -> list[str]:
    rows = []
    for plan, found in record.growths().items():
        time, memory = found["seconds"], found["working_bytes"]
        if time is None:
            continue
        rows.append(
            [
                plan,
                f"{time.per_frame:.3g} s a frame + {time.at_zero:.3g} s",
                f"{100 * time.worst:.0f} %",
                f"{time.exponent:.2f}",
                f"{memory.per_frame / 1e6:.3g} MB a frame" if memory else "-",
                f"{memory.exponent:.2f}" if memory else "-",
            ]
        )
    head = ["plan", "time", "off the line by up to", "exponent", "memory", "exponent"]
    return ["## Growth with length", "", "An exponent of 1 is linear growth, 0 is none.", "", *_table(head, rows)]


def _spread(spread: Spread, digits: int = 4) -> str:
    return f"{spread.median:.{digits}g} ({spread.low:.{digits}g} to {spread.high:.{digits}g})"


def _megabytes(cost: Cost) -> str:
    return f"{cost.peak_bytes / 1e6:.0f} ({cost.working_bytes / 1e6:.0f})"
