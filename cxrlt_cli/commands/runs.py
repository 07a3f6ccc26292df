"""``cxrlt runs``: the runs in a directory, and what one of them is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxrlt_cli.artifacts import RunDir, find_run, list_runs, read_lines
from cxrlt_cli.errors import RunError
from cxrlt_cli.events import Result, Table

#: Characters of a list that still stands in one row.
_LONG = 100
#: What the table of epochs shows; the rest is in metrics.jsonl.
_SHOWN = ("epoch", "loss", "macro_ap", "macro_auroc", "macro_f1", "lr", "seconds")


def run_list(root: Path = Path("runs")) -> Result:
    """The runs directly in ``root``, the newest first; a damaged one is listed as such."""
    rows: list[tuple[str, ...]] = []
    data: list[dict[str, Any]] = []
    for run in list_runs(root):
        try:
            info = run.info()
        except RunError as error:
            rows.append((run.path.name, f"damaged: {error.what}", "", "", "", ""))
            data.append({"path": run.path, "status": "damaged", "reason": error.what})
            continue
        rows.append(_row(run, info))
        data.append({"path": run.path, **info, "status": _status(run, info)})
    if not rows:
        text = f"There is no run in {root}. Train one with `cxrlt train RECIPE`."
        return Result({"root": root, "runs": []}, (text,))
    table = Table(("run", "status", "epochs", "dev macro AP", "dataset", "updated"), tuple(rows))
    return Result({"root": root, "runs": data}, (table,))


def run_show(run: Path | None = None) -> Result:
    """What a run is, how it went, and what it left.

    Args:
        run: the run directory; None for the newest in ``runs``.

    Raises:
        RunError: there is none, or it is damaged.
    """
    found = find_run(run)
    info = found.info()
    history = read_lines(found.metrics)
    files = {key: path for key, path in _files(found).items() if path.exists()}
    facts = tuple((key, _text(value)) for key, value in _flat(info))
    blocks: list[Table | str] = [f"{found.name} ({found.path})", Table(("run.json", ""), facts)]
    if history:
        blocks.append(_history(history))
    blocks.append(Table(("file", "path"), tuple((key, str(path)) for key, path in files.items())))
    return Result({"path": found.path, **info, "history": history, "files": files}, tuple(blocks))


def _status(run: RunDir, info: Mapping[str, Any]) -> str:
    """What run.json says, unless the process that wrote "running" is gone."""
    status = str(info.get("status", "unknown"))
    return "killed" if status == "running" and not run.in_use() else status


def _row(run: RunDir, info: Mapping[str, Any]) -> tuple[str, ...]:
    saved, dataset = info.get("average") or info.get("best") or {}, info.get("dataset") or {}
    score, split = saved.get("macro_ap"), info.get("split", "dev")
    return (
        run.path.name,
        _status(run, info),
        str(info.get("epochs", "")),
        "" if score is None else f"{score:.4f}" + ("" if split == "dev" else f" ({split})"),
        str(dataset.get("name", "")),
        str(info.get("updated", info.get("created", ""))),
    )


def _files(run: RunDir) -> dict[str, Path]:
    predictions = {f"predictions {path.stem}": path for path in sorted(run.path.glob("predictions/*.parquet"))}
    return {
        "recipe": run.recipe,
        "weights": run.model,
        "ensemble": run.ensemble,
        "metrics": run.metrics,
        "state to continue from": run.last,
        **predictions,
        "decisions": run.decisions,
        "report": run.report,
    }


def _flat(value: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            found.extend(_flat(item, f"{prefix}{key}."))
        elif isinstance(item, list) and _wants_rows(item):
            found.extend(_flat(dict(enumerate(item)), f"{prefix}{key}."))
        elif item is not None:
            found.append((f"{prefix}{key}", item))
    return found


def _wants_rows(items: list[Any]) -> bool:
    """Whether the items of a list are told in a row each: where they hold several facts, or are long."""
    return any(isinstance(item, Mapping) for item in items) or len(_text(items)) > _LONG


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_text(item)}" for key, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _history(rows: list[dict[str, Any]]) -> Table:
    columns = tuple(key for key in _SHOWN if any(key in row for row in rows))
    cells = tuple(tuple("" if row.get(key) is None else _text(row[key]) for key in columns) for row in rows)
    return Table(columns, cells, title="epochs", note="All figures are in metrics.jsonl, and in --json.")
