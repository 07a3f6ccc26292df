"""Fixtures of the whole suite."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cxrlt_cli import registry
from cxrlt_cli.cli import main

# Before torch is imported: networks this small only lose time to threads, and threads that wait by spinning are many
# times slower when tests run side by side.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument.

    As names they are unreadable, and some (gzip) hold the time: parallel workers that name one test differently stop
    before the first test.
    """
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout, or ``$CXRLT_SHARED``; the test is skipped without it."""
    folder = Path(os.environ.get("CXRLT_SHARED") or REPOSITORY.parent / "shared")
    parts = ("data/nih-cxr-lt-1k", "data/nih-png-1024", "data/png16", "tables/nih-cxr-lt", "tables/cxrlt2026")
    if not all((folder / part).is_dir() for part in parts):  # another folder may have that name
        pytest.skip(f"no shared data in {folder} (set CXRLT_SHARED)")
    return folder


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make a file unreadable, for root as well, whom permissions do not stop."""
    really = io.open

    def deny(path: Path) -> None:
        denied = os.path.abspath(path)

        def opened(file: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(file, str | os.PathLike) and os.path.abspath(file) == denied:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
            return really(file, *arguments, **options)

        monkeypatch.setattr(io, "open", opened)

    return deny


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of 150 phantoms of 32 px, for tests that only read it."""
    from cxrlt_cli.commands import prepare

    out = tmp_path_factory.mktemp("prepared") / "phantom"
    prepare.run("phantom", out, size=32, options={"count": 150}, jobs=1)
    return out


Install = Callable[..., Path]


def write_distribution(
    site: Path, name: str, entry_points: str, modules: Mapping[str, str], version: str = "1.0"
) -> Path:
    """An installed distribution in ``site``, as an installer would leave it."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)
    for module, source in modules.items():
        (site / f"{module}.py").write_text(source)
    return site


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install(name, entry_points, {module: source})`` puts a distribution on the path of this process."""
    site = tmp_path / "site"
    known = set(sys.modules)

    def put(name: str, entry_points: str, modules: Mapping[str, str] | None = None, version: str = "1.0") -> Path:
        write_distribution(site, name, entry_points, modules or {}, version)
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(site)
        registry._scan.cache_clear()
        return site

    yield put
    for module in set(sys.modules) - known:
        if getattr(sys.modules[module], "__file__", None) and str(site) in str(sys.modules[module].__file__):
            del sys.modules[module]
    registry._scan.cache_clear()


class Outcome(NamedTuple):
    """What a command did: exit status, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as one JSON value; fails when there is anything else on it."""
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def cxrlt(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """``cxrlt("plugins", "list")`` in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("RANK", "WORLD_SIZE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cxrlt", *map(str, arguments)])
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        out, err = capfd.readouterr()
        assert isinstance(code, int) or code is None
        return Outcome(code or 0, out, err)

    return run
