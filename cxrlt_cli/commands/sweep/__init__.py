"""``cxrlt sweep``: every row of a table trained, and the table with intervals and paired differences.

The modules in the order of the work: ``plan`` (rows to steps), ``standing`` (what is there), ``engines`` and
``schedule`` (carrying out), ``figures`` (scores, intervals, differences), ``table`` (how they are written).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from cxrlt_cli.artifacts import writable_directory
from cxrlt_cli.commands.sweep.engines import make_engine
from cxrlt_cli.commands.sweep.figures import TableOfRows, score_rows
from cxrlt_cli.commands.sweep.plan import Plan, check_plugins, make_plan, on_device
from cxrlt_cli.commands.sweep.schedule import Ended, carry_out, first_code
from cxrlt_cli.commands.sweep.standing import is_done, refuse_changed
from cxrlt_cli.commands.sweep.table import as_blocks, as_text, write_tables
from cxrlt_cli.errors import RunError
from cxrlt_cli.events import Emit, Notice, Result, Table, silent
from cxrlt_cli.recipe.load import load_sweep


def run(
    table: str,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    jobs: int | None = None,
    engine: str = "local",
    engine_settings: Sequence[str] = (),
    device: str = "auto",
    split: str | None = None,
    form: str = "text",
    dry_run: bool = False,
    emit: Emit = silent,
) -> Result:
    """Train what a sweep still lacks, then score its rows.

    Args:
        table: path of a sweep, or the name of a shipped one.
        overrides: ``key=value`` settings laid over the recipe of every row.
        out: directory of runs and tables; default ``runs/<name of the sweep>``.
        jobs: commands at a time; default: one a GPU, or one; on a cluster all.
        engine: "local", "submitit" or "ray".
        engine_settings: ``key=value`` settings of the engine.
        device: "auto", "cpu" or "cuda", for every command.
        split: images to score, "dev" or "test"; default: the table's.
        form: of the table in the result: "text", "markdown", "latex" or "csv". All of them are written.
        dry_run: say what would run, and stop.
        emit: told about progress.

    Returns:
        The table; its ``code`` is that of the first command that failed.

    Raises:
        CxrltError: whatever is wrong, with its cure. Nothing has been started then, except with ``Interrupted``.
    """
    loaded = load_sweep(table)
    plan = make_plan(loaded, overrides, out, split)
    if device != "auto":
        plan = on_device(plan, device)
    lacking = [step for step in plan.steps.values() if not is_done(step)]
    refuse_changed(list(plan.steps.values()))
    check_plugins(lacking, loaded)
    if dry_run:
        return _outlook(plan, {step.key for step in lacking})
    writable_directory(plan.out)
    ended = _carry_out(plan, jobs, engine, engine_settings, emit) if lacking else {}
    return _closing(plan, ended, form, emit)


def _carry_out(plan: Plan, jobs: int | None, engine: str, settings: Sequence[str], emit: Emit) -> Mapping[str, Ended]:
    chosen = make_engine(engine, jobs, settings, plan.out, len(plan.steps))
    return carry_out(plan.steps, chosen, plan.out / "logs", emit)


def _closing(plan: Plan, ended: Mapping[str, Ended], form: str, emit: Emit) -> Result:
    """Score the rows whose steps are all done, write the tables and say what is missing."""
    whole = [e for e in plan.entries if all(_good(ended, key) for needs in e.needs for key in needs)]
    broken = [entry.name for entry in plan.entries if entry not in whole]
    code = first_code(ended, list(plan.steps))
    if not whole:
        raise RunError("no row is finished", where=str(plan.out), cure="Look into the logs there, then run it again.")
    if broken:
        emit(Notice(f"left out of the table, as not all of their runs are finished: {', '.join(broken)}", "warning"))
    scored = score_rows(plan, whole, emit)
    files = write_tables(plan.out, scored)
    blocks: tuple[Table | str, ...] = as_blocks(scored) if form == "text" else (as_text(scored, form).rstrip("\n"),)
    if form == "text":
        blocks += (Table(("wrote", ""), tuple((path.suffix[1:], str(path)) for path in files)),)
    return Result({**scored.to_json(), "files": files, "unfinished": broken}, blocks, code)


def _good(ended: Mapping[str, Ended], key: str) -> bool:
    return not ended or (key in ended and ended[key].good)


def _outlook(plan: Plan, lacking: set[str]) -> Result:
    """What would run."""
    rows = [
        (key, step.kind, ", ".join(step.needs) or "-", "runs" if key in lacking else "is there")
        for key, step in plan.steps.items()
    ]
    # beside the table, a line each: whole when copied, or handed to a shell
    commands = [f"cxrlt {shlex.join(step.arguments)}" for key, step in plan.steps.items() if key in lacking]
    data = {
        "out": plan.out,
        "split": plan.split,
        "reference": plan.reference,
        "rows": [{"name": e.name, "runs": [run.path for run in e.runs], "tta": e.tta} for e in plan.entries],
        "steps": [
            {
                "name": key,
                "kind": step.kind,
                "needs": step.needs,
                "command": ["cxrlt", *step.arguments],
                "done": key not in lacking,
            }
            for key, step in plan.steps.items()
        ],
    }
    text = f"{len(plan.entries)} rows, {len(plan.steps)} steps, {len(lacking)} of them to run. Nothing was written."
    steps = Table(("step", "command", "after", ""), tuple(rows))
    return Result(data, (steps, "\n".join(commands), text) if commands else (steps, text))


__all__ = ["TableOfRows", "run"]
