"""What is said about an ensemble."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cxrlt_cli.artifacts import RunDir
from cxrlt_cli.bootstrap import p_text
from cxrlt_cli.commands.ensemble.gain import RIVALS
from cxrlt_cli.commands.ensemble.members import why_again
from cxrlt_cli.commands.ensemble.writing import Request
from cxrlt_cli.events import Result, Table
from cxrlt_cli.wording import SIGNED, between, figure

_LABELS = {"macro_ap": "mAP", "macro_auroc": "AUROC"}


def summary(target: RunDir) -> Result:
    """What a finished ensemble has to say."""
    info = target.info()
    own = info["ensemble"]
    files = {"run": target.path, "ensemble": target.ensemble, "predictions": target.predictions(info["split"])}
    data = {
        "name": target.name,
        "method": info["method"],
        "split": info["split"],
        "seed": info["seed"],
        "status": info["status"],
        "dataset": info["dataset"],
        "members": info["members"],
        **own,
        "seconds": info["seconds"],
        **{key: str(path) for key, path in files.items()},
    }
    rows = tuple((key, str(path)) for key, path in files.items())
    blocks = (_members(info), _gains(info), _single(own), _differences(own["diversity"]))
    return Result(data, (*blocks, Table(("wrote", ""), rows), f"Next: cxrlt evaluate {target.path}"))


def _members(info: dict[str, Any]) -> Table:
    rows = [
        (one["name"], f"{one['weight']:.3f}", figure(one["macro_ap"]), figure(one["macro_auroc"]), one["tta"])
        for one in info["members"]
    ]
    what = "mean coefficient over the classes" if info["method"] == "stacking" else "share in every class"
    title = f"{info['method']} of {len(rows)} members, on {info['split']} of {info['dataset']['name']}"
    columns = ("member", "weight", "mAP", "AUROC", "test-time augmentation")
    return Table(columns, tuple(rows), title=title, note=f"weight: {what}; mAP, AUROC: of the member alone.")


def _gains(info: dict[str, Any]) -> Table:
    own, rows = info["ensemble"], []
    for rival, figures in own["compared"].items():
        for name, found in figures.items():
            cells = [figure(found["ensemble"]), figure(found["rival"]), figure(found["difference"], SIGNED)]
            if own["resamples"]:
                cells += [between(found["low"], found["high"], SIGNED), figure(found["detectable"])]
                cells += [p_text(found["p"])]
            rows.append((f"{_LABELS[name]} minus {RIVALS[rival]}", *cells))
    columns: tuple[str, ...] = ("out of fold", "ensemble", "other", "gain")
    note = "Each patient is scored by what the other patients' labels taught: scales, weights, the best member."
    if own["resamples"]:
        columns += ("95 % interval", "detectable", "p")
        note += f"\n{own['resamples']:,} resamples of the patients, the same for all; p: two-sided."
    return Table(columns, tuple(rows), note=note)


def _single(own: dict[str, Any]) -> str:
    counts = Counter(own["single_by_fold"])
    chosen = ", ".join(f"{name} in {count}" for name, count in counts.most_common())
    return f"Best single member by fold: {chosen}."


def _differences(pairs: list[dict[str, Any]]) -> Table:
    rows = [
        (
            f"{pair['first']}, {pair['second']}",
            figure(pair["correlation"], ".3f"),
            figure(pair["disagreement"]),
            figure(pair["called_by_one"], ".3f"),
        )
        for pair in pairs
    ]
    note = (
        "correlation: of log-odds, averaged over classes; disagreement: share of all decisions; called by one: share "
        "of the findings called by either that only one calls."
    )
    return Table(("pair", "correlation", "disagreement", "called by one"), tuple(rows), note=note)


def planned(request: Request) -> Result:
    """What would be done."""
    rows, members = [], []
    for one in request.opened:
        reason = why_again(one, one.predictions(request.prepared, request.split))
        rows.append((str(one.dir.path), one.made, "to be made" if reason else "there"))
        members.append({"run": str(one.dir.path), "predictions": not reason})
    data = {
        "run": str(request.target.path),
        "method": request.method,
        "split": request.split,
        "images": len(request.rows),
        "members": members,
    }
    title = f"{request.method} on {len(request.rows):,} images of {request.split}, into {request.target.path}"
    table = Table(("member", "weights", f"predictions of {request.split}"), tuple(rows), title=title)
    return Result(data, (table, "Nothing was written."))
