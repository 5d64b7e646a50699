"""Numbers for the repository: records of results as JSON, and a Markdown page made from records alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xdyna.errors import UserError
from xdyna.files import make_folder, written_whole
from xdyna.infer.evaluate.records import LEVEL, difference_table, figure_table, read_record, record_of, write_record
from xdyna.infer.evaluate.report.methods import gather
from xdyna.infer.evaluate.results import Results

_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")


def write_records(files: Sequence[Path], folder: Path) -> list[Path]:
    """One record for each method of some files of results, `folder/METHOD.json`.

    Raises:
        UserError: files that do not go side by side, or a run that has not ended.
    """
    gather(files)  # refuses other protocols, test sets and double names
    written = []
    for results in map(Results.read, files):
        for method in results.methods:
            if all(line.method != method for line in results.sets):
                raise UserError(f"{results.path}: {method} has not ended; run the same command again, then record it")
            path = folder / f"{_UNSAFE.sub('-', method).strip('-') or 'method'}.json"
            write_record(path, record_of(results, method))
            written.append(path)
    return written


def write_markdown(files: Sequence[Path], page: Path, command: str) -> None:
    """A page of records; the first is the one that the others are compared with.

    Raises:
        UserError: no record, one that is none, two of a name, or records of different protocols or test sets.
    """
    records = {}
    for file in files:
        if file.stem in records:
            raise UserError(f"{file}: two records are named {file.stem}; wanted a name of its own for each")
        records[file.stem] = read_record(file, ("clips", "sets", "metrics", "protocol", "protocol_hash", "dataset"))
    if not records:
        raise UserError("no records given, wanted one JSON file that `xdyna eval report --out FOLDER` wrote, or more")
    name, first = next(iter(records.items()))
    for other, record in records.items():
        for key, words in (("protocol_hash", "protocol"), ("dataset", "test set")):
            if record[key] != first[key]:
                raise UserError(f"record {other} is of another {words} than {name}; score the videos again")
    make_folder(page.parent)
    with written_whole(page) as part:
        part.write_text(_text(records, command), encoding="utf-8")


def _text(records: Mapping[str, Mapping[str, Any]], command: str) -> str:
    first = next(iter(records.values()))
    groups = {name: [record] for name, record in records.items()}
    figures = [(key, f"`{key}`" + _unit(first, key)) for key in _keys(records)]
    data, version = first["dataset"] or {}, first["protocol"]["config"]["version"]
    test_set = f"{data['name']}, {data['clips']} clips ({data['sha256'][:12]})" if data else "videos by name"
    lines = [
        "# Results", "", f"Written by `{command}`; every number comes from a record.", "",
        f"Test set: {test_set}. Protocol {version}:{first['protocol_hash'][:12]}. Brackets are {LEVEL:.0%} intervals "
        "of a bootstrap over videos; Frechet distances are of all clips together. Figures with * are distances to the "
        "truth's own value. Names that end in -synth are of networks trained on drawn clips.", "",
        *figure_table(groups, figures, list(records)),
    ]  # fmt: skip
    if len(records) > 1:
        lines += ["", f"## Differences to {next(iter(records))}", "", *difference_table(groups, figures, list(records))]
    lines += ["", "## What was scored", "", "| name | model | SHA-256 | settings that differ |", "|---|---|---|---|"]
    lines += [f"| {name} | {_model(record, first)} |" for name, record in records.items()]
    missing = sorted(set.intersection(*(set(record["missing"]) for record in records.values())))
    if missing:
        lines += ["", f"Left out because their networks' weights are not at hand: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _keys(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Figures of clips, then of sets, that some record has a number of."""
    found: dict[str, None] = {}
    for record in records.values():
        for clip in record["clips"].values():
            found |= {key: None for key, value in clip["values"].items() if value is not None}
    for record in records.values():
        found |= {key: None for key, value in record["sets"].items() if value is not None}
    return list(found)


def _unit(record: Mapping[str, Any], key: str) -> str:
    unit = record["metrics"].get(key.rpartition("/")[0], {}).get("unit")
    return f", {unit}" if unit else ""


def _model(record: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    model, settings = record["model"], record["model"].get("settings") or {}
    usual = first["model"].get("settings") or {}
    other = [f"{key} {_short(value)}" for key, value in settings.items() if value != usual.get(key) and key != "model"]
    return " | ".join([str(model.get("model", "")), str(model.get("model_sha256", ""))[:12], "; ".join(other)])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.items() if item not in (None, False)) + "}"
    return str(value)
