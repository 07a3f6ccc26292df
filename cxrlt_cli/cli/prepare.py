"""``cxrlt prepare``: one command a source plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from cxrlt_cli.events import Emit, Result
from cxrlt_cli.source_command import source_command
from cxrlt_cli.stubs import group, shown


class _Sources(TyperGroup):
    """``prepare SOURCE``: one command a source plugin, made from its options when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        from cxrlt_cli.registry import available

        return list(dict.fromkeys(plugin.name for plugin in available("datasets")))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list for ``prepare --help``, from metadata: no plugin is imported."""
        from cxrlt_cli.registry import available

        rows = [(plugin.name, f"from {plugin.distribution} {plugin.version}") for plugin in available("datasets")]
        with formatter.section("Sources (options of each: cxrlt prepare SOURCE --help)"):
            formatter.write_dl(rows or [("none", "no source is installed")])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        single = group()
        single.command(cmd_name)(shown(source_command(cmd_name, prepare)))
        return typer.main.get_command(single)


sources = group(
    cls=_Sources,
    subcommand_metavar="SOURCE OUT [OPTIONS]",
    short_help="Audit, split, decode once and pack a dataset.",
    help="Audit, split, decode once and pack: from a source of radiographs to a prepared dataset in OUT.",
)


def prepare(
    emit: Emit,
    source: str,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory of the prepared dataset.")],
    *,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the image files.")] = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="The label table.")] = None,
    size: Annotated[int, typer.Option(min=16, max=4096, metavar="PIXELS", help="Side of the prepared images.")] = 512,
    fit: Annotated[
        Literal["pad", "squash"],
        typer.Option(metavar="pad|squash", help="Make images square by padding, or by squashing."),
    ] = "pad",
    split: Annotated[
        str | None, typer.Option(help="Shares split off by patient.", metavar="dev=0.1,test=0.1", show_default=False)
    ] = None,
    folds: Annotated[int | None, typer.Option(min=2, metavar="N", help="Also deal the patients into folds.")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of splits and of everything drawn.")] = 0,
    jobs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes; default: one a CPU.")] = None,
    allow_quarantine: Annotated[
        bool, typer.Option("--allow-quarantine", help="Go on when more than 1 % of the images are unreadable.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check, write nothing.")] = False,
    options: dict[str, object],
) -> Result:
    """What every source has in common; ``source_command`` adds the options of the source itself."""
    from cxrlt_cli.commands.prepare import run

    return run(
        source,
        out,
        images=images,
        labels=labels,
        size=size,
        fit=fit,
        split=split,
        folds=folds,
        seed=seed,
        options=options,
        allow_quarantine=allow_quarantine,
        jobs=jobs,
        dry_run=dry_run,
        emit=emit,
    )
