"""Where recipes are found: files of the user, and the recipes that ship with cxrlt."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cxrlt_cli.errors import UsageError
from cxrlt_cli.recipe.nodes import MAX_BYTES
from cxrlt_cli.wording import nearest

_PACKAGE = Path(__file__).resolve().parent.parent
_SUFFIXES = (".yaml", ".yml")


def shipped() -> dict[str, Path]:
    """The recipes that ship with cxrlt: name (``demo_phantom``, ``paper/row1``) -> file, sorted by name.

    An installed wheel carries them inside the package, a source checkout beside it.
    """
    for root in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes"):
        if root.is_dir():
            files = (path for path in sorted(root.rglob("*")) if path.suffix in _SUFFIXES and path.is_file())
            return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}
    return {}


def locate(source: str | os.PathLike[str], beside: Path | None = None) -> Path:
    """The file that a path or the name of a shipped recipe stands for.

    Args:
        source: a path, relative to the current directory or to ``beside``; or a shipped name, with or without
            ``recipes/`` before it and ``.yaml`` after it, and without its folder where the rest is unique
            (``crt`` for ``heads/crt``). A file of the user comes first.
        beside: the folder of the recipe that names ``source`` in ``extends``.

    Raises:
        UsageError: there is neither such a file nor such a name.
    """
    text = os.fspath(source)
    path = (beside or Path()) / Path(text).expanduser()
    mode = _mode(path)
    if mode and not stat.S_ISDIR(mode):
        return path
    ours = shipped()
    name = text.removeprefix("./").removeprefix("recipes/").removesuffix(".yml").removesuffix(".yaml")
    if name in ours:
        return ours[name]
    ends = [full for full in ours if full.endswith(f"/{name}")]
    if name and len(ends) == 1:
        return ours[ends[0]]
    raise _missing(text, name, path, ours)


def read(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, or is far too large for a recipe.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}.", where=str(path)) from error
    if len(raw) > MAX_BYTES:
        raise UsageError(f"larger than {MAX_BYTES:,} bytes; that is no recipe.", where=str(path))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"line {line} is not UTF-8 text.", where=str(path), cure="Is it a recipe? Save it as UTF-8."
        ) from error


def _mode(path: Path) -> int:
    """What the path is (``st_mode``); 0 when there is nothing, or when nothing can have such a name."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def _missing(text: str, name: str, path: Path, ours: dict[str, Path]) -> UsageError:
    if text and stat.S_ISDIR(_mode(path)):
        return UsageError(f"'{text}' is a directory, not a recipe.", cure=_offer(ours))
    files = path.parent.glob("*") if stat.S_ISDIR(_mode(path.parent)) else ()
    beside = {file.stem: file.name for file in files if file.suffix in _SUFFIXES}
    near = nearest(path.stem, beside)
    hint = str(Path(text).parent / beside[near]) if near else nearest(name, ours)
    return UsageError(
        f"there is no recipe '{text}', neither as a file nor among those that ship with cxrlt."
        + (f" Did you mean '{hint}'?" if hint else ""),
        cure=_offer(ours),
    )


def _offer(ours: dict[str, Path]) -> str:
    return f"Shipped: {', '.join(ours)} (see `cxrlt recipe list`)." if ours else ""
