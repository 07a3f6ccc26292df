"""From identifiers to image files, by listing a folder once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cxrlt_cli.contracts import PluginFault

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".jp2", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".dcm"})


@dataclass(slots=True)
class Found:
    """The file of every image.

    Attributes:
        paths: one an image; where there is no file, the place it was expected at.
        missing: how many have no file.
        other_ending: how many have a file whose ending differs from the identifier's.
    """

    paths: list[str] = field(default_factory=list)
    missing: int = 0
    other_ending: int = 0


def find_images(folder: Path, names: Sequence[str], suffix: str) -> Found:
    """The files of ``names`` in ``folder`` or below it, with or without an ending.

    Raises:
        PluginFault: the folder is missing, two files answer to one name, or none of the images is there.
    """
    if not folder.is_dir():
        what = "is not a directory" if folder.exists() else "there is no such directory"
        raise PluginFault(what, where=f"--images {folder}", cure="Give the folder of the image files.")
    index = _Index(folder)
    found = Found()
    for name in names:
        wanted = name + suffix if suffix and not name.endswith(suffix) else name
        path = index.find(wanted)
        other = "" if path else index.find(_without_ending(wanted))
        found.missing += not (path or other)
        found.other_ending += bool(other)
        found.paths.append(str(folder / (path or other or wanted)))
    if found.missing == len(names):
        raise PluginFault(
            f"none of the {len(names)} images is there (the first one would be {found.paths[0]})",
            where=f"--images {folder}",
            cure="Check the folder. If file names are the identifiers with an ending, give it: --suffix .png",
        )
    return found


class _Index:
    """The files of a folder by relative path, by name, and by both without their ending."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._exact: set[str] = set()
        self._short: dict[str, list[str]] = {}
        for path in _files(folder):
            self._exact.add(path)
            pure = PurePosixPath(path)
            for key in {pure.name, *((pure.stem, _without_ending(path)) if pure.suffix.lower() in ENDINGS else ())}:
                self._short.setdefault(key, []).append(path)

    def find(self, name: str) -> str:
        """The path, relative to the folder, of the one file called ``name``, or an empty string."""
        name = os.path.normpath(name).replace(os.sep, "/")
        if name in self._exact or (os.path.isabs(name) and os.path.exists(name)):
            return name
        files = self._short.get(name, [])
        if len(files) > 1:
            raise PluginFault(
                f"{name!r} may be {files[0]} or {files[1]}",
                where=f"--images {self._folder}",
                cure="Give the ending with --suffix, a folder that has it once, or identifiers with their sub-folder.",
            )
        return files[0] if files else ""


def _without_ending(name: str) -> str:
    pure = PurePosixPath(name)
    return str(pure.with_suffix("")) if pure.suffix.lower() in ENDINGS else ""


def _files(folder: Path) -> Iterator[str]:
    """Relative paths of all files below ``folder``; hidden ones are left out, links to folders are followed once."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = os.path.relpath(parent, folder).replace(os.sep, "/")
        for name in sorted(names):
            if not name.startswith("."):
                yield name if prefix == "." else f"{prefix}/{name}"
