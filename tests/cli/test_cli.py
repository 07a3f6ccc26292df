"""The front: what is passed on, what is printed where, and how errors end."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cxrlt_cli
from cxrlt_cli import errors
from cxrlt_cli.events import Notice, Result, Table

SOURCE = '''
from typing import Literal

def build(
    request,
    *,
    count: int = 6000,
    share: float = 0.5,
    exact: bool = False,
    mode: Literal["a", "b"] = "a",
    level: Literal[1, 2] = 1,
    tag: str | None = None,
    classes: list[str] | None = None,
    range_: tuple[float, ...] = (0.0, 1.0),
):
    """Draws things.

    Args:
        request: what was asked for.
        count: how many images.
    """

build.default_size = 128

def strict(request, *, column: str):
    """Needs a column."""

def clash(request, *, seed: int = 3, quiet: bool = False):
    """Takes what the host has."""
'''


class Recorder:
    """Stands for a command module: remembers how it was called."""

    def __init__(self, result: Result | BaseException | None = None) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.result = result or Result({"done": True}, ("done",))

    def run(self, *arguments: Any, emit: Any, **options: Any) -> Result:
        self.calls.append((arguments, options))
        emit(Notice("working"))
        emit(Notice("a detail", "detail"))
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    @property
    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (only,) = self.calls
        return only


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``stand_in("train")`` puts a recorder in the place of that command's module."""

    def put(name: str, result: Result | BaseException | None = None) -> Recorder:
        recorder = Recorder(result)
        module = ModuleType(f"cxrlt_cli.commands.{name}")
        module.run = recorder.run  # type: ignore[attr-defined]  # a module made by hand
        import cxrlt_cli.commands

        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(cxrlt_cli.commands, name, module, raising=False)
        return recorder

    return put


@pytest.fixture
def toy(install: Any) -> None:
    """A dataset source with options of every kind."""
    entries = "[cxrlt.datasets]\ntoy = toy_source:build\nstrict = toy_source:strict\nclash = toy_source:clash\n"
    install("toy", entries, {"toy_source": SOURCE})


# -- the whole ---------------------------------------------------------------------------------------------------


def test_help_lists_the_commands_in_the_order_of_their_use(cxrlt: Any) -> None:
    done = cxrlt("--help")
    assert done.code == 0
    commands = [line.split()[0] for line in done.out.partition("Commands:")[2].splitlines() if line.strip()]
    use = ["prepare", "train", "retrain-head", "sweep", "evaluate", "predict", "decide", "ensemble"]
    assert commands == [*use, "doctor", "plugins", "recipe", "runs"]


@pytest.mark.parametrize("arguments", [(), ("train",), ("plugins",), ("recipe", "show"), ("prepare",)])
def test_h_is_help(cxrlt: Any, arguments: tuple[str, ...]) -> None:
    assert cxrlt(*arguments, "-h").out == cxrlt(*arguments, "--help").out != ""


def test_version_is_that_of_the_distribution(cxrlt: Any) -> None:
    assert cxrlt("--version").out == f"cxrlt {version('cxrlt')}\n"
    assert cxrlt_cli.__version__ == version("cxrlt")


def test_a_misspelt_command_is_suggested(cxrlt: Any) -> None:
    done = cxrlt("trian")
    assert done.code == 2
    assert "'train'" in done.err
    assert done.out == ""


@pytest.mark.parametrize("arguments", [("train", "x", "--fersh"), ("train",), ("train", "x", "--devices", "0")])
def test_usage_errors_exit_with_2(cxrlt: Any, arguments: tuple[str, ...]) -> None:
    assert cxrlt(*arguments).code == 2


def test_python_m(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cxrlt_cli", "train"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Usage: cxrlt train" in done.stderr


# -- what is passed on -------------------------------------------------------------------------------------------


def test_train_passes_everything_on(cxrlt: Any, stand_in: Any) -> None:
    train = stand_in("train")
    line = "train r.yaml --set optim.lr=3e-4 --set loss=ldam --out runs/a --fresh --devices 2 --device cpu --dry-run"
    assert cxrlt(*line.split()).code == 0
    assert train.call == (
        ("r.yaml",),
        {
            "overrides": ["optim.lr=3e-4", "loss=ldam"],
            "out": Path("runs/a"),
            "fresh": True,
            "devices": 2,
            "device": "cpu",
            "dry_run": True,
        },
    )


def test_train_has_defaults(cxrlt: Any, stand_in: Any) -> None:
    train = stand_in("train")
    cxrlt("train", "r.yaml")
    options = train.call[1]
    assert not options.pop("overrides")
    assert options == {"out": None, "fresh": False, "devices": None, "device": "auto", "dry_run": False}


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Records what ``commands.evaluate.run`` is asked."""
    recorder = Recorder(None)
    monkeypatch.setattr("cxrlt_cli.commands.evaluate.run", recorder.run)
    return recorder


def test_evaluate_passes_everything_on(cxrlt: Any, evaluated: Recorder) -> None:
    line = (
        "evaluate a b --split test --absent zero --data d --tta flip --resamples 7 --seed 3 --report r.html --heatmaps"
    )
    assert cxrlt(*line.split()).code == 0
    (runs,), options = evaluated.call
    wanted = options.pop("report")
    assert (wanted.file, wanted.none, wanted.heatmaps) == (Path("r.html"), False, True)
    assert runs == [Path("a"), Path("b")]
    expected = {"split": "test", "absent": "zero", "data": Path("d"), "tta": "flip", "resamples": 7, "seed": 3}
    assert options == expected


def test_evaluate_takes_the_newest_run_and_dev(cxrlt: Any, evaluated: Recorder) -> None:
    assert cxrlt("evaluate", "--split", "dev").code == 0
    (runs,), options = evaluated.call
    assert (runs, options["split"], options["absent"], options["resamples"]) == ([], "dev", "skip", 1000)


def test_evaluate_refuses_another_policy(cxrlt: Any, stand_in: Any) -> None:
    evaluate = stand_in("evaluate")
    assert cxrlt("evaluate", "--absent", "drop").code == 2
    assert not evaluate.calls


def test_predict_passes_everything_on(cxrlt: Any, stand_in: Any, tmp_path: Path) -> None:
    predict = stand_in("predict")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    line = "predict run --split test --tta flip --force -o p.csv --submission --data d --device cuda:1 --batch-size 8"
    line += " --calibration beta --threshold 0.3 --target-prevalence estimate"
    assert cxrlt(*line.split()).code == 0
    assert predict.call == (
        (Path("run"), []),
        {
            "split": "test",
            "tta": "flip",
            "force": True,
            "out": Path("p.csv"),
            "submission": True,
            "data": Path("d"),
            "device": "cuda:1",
            "batch_size": 8,
            "calibration": "beta",
            "threshold": "0.3",
            "target_prevalence": "estimate",
        },
    )


@pytest.mark.parametrize(
    ("paths", "run"),
    [
        ([], None),
        (["run"], "run"),
        (["run", "a.png", "folder"], "run"),
        (["a.png", "folder"], None),
        (["folder", "a.png"], None),
        (["a.png", "run"], None),
        (["absent"], None),
    ],
)
def test_the_first_path_of_predict_is_the_run_if_it_is_one(
    cxrlt: Any, stand_in: Any, paths: list[str], run: str | None
) -> None:
    predict = stand_in("predict")
    for folder in ("run", "folder"):
        Path(folder).mkdir()
    Path("run", "run.json").touch()
    Path("a.png").touch()
    cxrlt("predict", *paths)
    inputs = [Path(path) for path in (paths[1:] if run else paths)]
    assert predict.call[0] == (Path(run) if run else None, inputs)


# -- prepare -----------------------------------------------------------------------------------------------------

HOST_DEFAULTS = {
    "images": None,
    "labels": None,
    "size": 512,
    "fit": "pad",
    "split": None,
    "folds": None,
    "seed": 0,
    "allow_quarantine": False,
    "jobs": None,
    "dry_run": False,
    "options": {},
}


def test_prepare_help_imports_no_source(cxrlt: Any, install: Any) -> None:
    install("acme", "[cxrlt.datasets]\nboom = acme_boom:build\n", {"acme_boom": "raise RuntimeError"})
    done = cxrlt("prepare", "--help")
    assert done.code == 0
    assert "boom" in done.out
    assert "acme 1.0" in done.out
    assert "acme_boom" not in sys.modules


def test_the_help_of_a_source_lists_its_options(cxrlt: Any, toy: None) -> None:
    done = cxrlt("prepare", "toy", "--help")
    assert done.code == 0
    assert "Draws things." in done.out
    assert "how many images." in done.out
    for option in ("--count", "--exact", "--no-exact", "--range-", "--images", "--labels", "--json", "a|b"):
        assert option in done.out


def test_a_source_declares_its_own_size(cxrlt: Any, toy: None, stand_in: Any) -> None:
    prepare = stand_in("prepare")
    assert cxrlt("prepare", "toy", "out").code == 0
    assert prepare.call == (("toy", Path("out")), HOST_DEFAULTS | {"size": 128})


def test_other_sources_are_512(cxrlt: Any, toy: None, stand_in: Any) -> None:
    prepare = stand_in("prepare")
    assert cxrlt("prepare", "strict", "out", "--column", "id").code == 0
    assert prepare.call[1] == HOST_DEFAULTS | {"options": {"column": "id"}}


def test_prepare_passes_everything_on(cxrlt: Any, toy: None, stand_in: Any) -> None:
    prepare = stand_in("prepare")
    line = (
        "prepare toy out --images i --labels l.csv --size 256 --fit squash --split dev=0.1 --folds 5 --seed 3 --jobs 2 "
        "--allow-quarantine --dry-run --count 10 --share 0.25 --exact --mode b --level 2 --tag x "
        "--classes A,B --classes C --range- 0.5 --range- 2"
    )
    assert cxrlt(*line.split()).code == 0
    assert prepare.call == (
        ("toy", Path("out")),
        {
            "images": Path("i"),
            "labels": Path("l.csv"),
            "size": 256,
            "fit": "squash",
            "split": "dev=0.1",
            "folds": 5,
            "seed": 3,
            "allow_quarantine": True,
            "jobs": 2,
            "dry_run": True,
            "options": {
                "count": 10,
                "share": 0.25,
                "exact": True,
                "mode": "b",
                "level": 2,
                "tag": "x",
                "classes": ["A", "B", "C"],
                "range_": [0.5, 2.0],
            },
        },
    )


def test_what_is_passed_on_fits_the_options_model(cxrlt: Any, toy: None, stand_in: Any) -> None:
    from cxrlt_cli.registry import check_options

    prepare = stand_in("prepare")
    line = "prepare toy out --level 2 --mode b --classes A --range- 1 --share 1 --tag 3"
    cxrlt(*line.split())
    options = prepare.call[1]["options"]
    assert check_options("datasets", {"name": "toy", **options})["tag"] == "3"


def test_a_misspelt_source_is_suggested(cxrlt: Any) -> None:
    done = cxrlt("prepare", "phantum", "out")
    assert done.code == errors.PluginError.code
    assert "there is no dataset source 'phantum'. Did you mean 'phantom'?" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("toy", "out", "--cuont", "3"), "--count"),
        (("toy", "out", "--count", "many"), "'--count'"),
        (("toy", "out", "--size", "3"), "16"),
        (("toy",), "OUT"),
        (("strict", "out"), "--column"),
    ],
)
def test_wrong_options_of_a_source(cxrlt: Any, toy: None, arguments: tuple[str, ...], message: str) -> None:
    done = cxrlt("prepare", *arguments)
    assert done.code == 2
    assert message in done.err


def test_a_source_whose_option_the_host_has_already(cxrlt: Any, toy: None) -> None:
    done = cxrlt("prepare", "clash", "out")
    assert done.code == errors.PluginError.code
    assert "the options quiet, seed of the dataset source 'clash'" in done.err


# -- what is printed ---------------------------------------------------------------------------------------------


def test_results_go_to_stdout_and_messages_to_stderr(cxrlt: Any, stand_in: Any) -> None:
    stand_in("train", Result({"a": 1}, (Table(("class", "AP"), (("Mass", "0.5"),)), "wrote x")))
    done = cxrlt("train", "r.yaml")
    assert done.out.startswith("class")
    assert done.out.endswith("wrote x\n")
    assert done.err == "working\n"


def test_quiet_and_verbose(cxrlt: Any, stand_in: Any) -> None:
    stand_in("train")
    assert cxrlt("train", "r.yaml", "-q").err == ""
    assert cxrlt("train", "r.yaml", "-v").err == "working\na detail\n"


def test_processes_that_are_started_say_as_much(cxrlt: Any, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []

    def run(recipe: str, **options: Any) -> Result:
        seen.append(("CXRLT_QUIET" in os.environ, "CXRLT_VERBOSE" in os.environ))
        return Result({})

    stand_in("train")
    monkeypatch.setattr(sys.modules["cxrlt_cli.commands.train"], "run", run)
    for flag in ("-q", "-v", "--json"):
        cxrlt("train", "r.yaml", flag)
    assert seen == [(True, False), (False, True), (False, False)]


def test_a_process_that_was_started_says_as_little(cxrlt: Any, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("train")
    monkeypatch.setenv("CXRLT_QUIET", "1")
    assert cxrlt("train", "r.yaml").err == ""


def test_json_is_all_there_is_on_stdout(cxrlt: Any, stand_in: Any) -> None:
    stand_in("train", Result({"score": float("nan"), "path": Path("x")}, ("text",)))
    assert cxrlt("train", "r.yaml", "--json").json == {"score": None, "path": "x"}


@pytest.mark.parametrize("command", ["plugins list", "plugins show bce", "recipe list", "recipe schema", "runs list"])
def test_every_command_with_a_result_has_json(cxrlt: Any, command: str) -> None:
    assert isinstance(cxrlt(*command.split(), "--json").json, dict)


# -- how errors end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.CxrltError, 1),
        (errors.UsageError, 2),
        (errors.DataError, 3),
        (errors.PluginError, 4),
        (errors.RunError, 5),
        (errors.TrainingError, 6),
        (errors.Interrupted, 130),
        (errors.Terminated, 143),
    ],
)
def test_errors_are_one_message_and_a_code(cxrlt: Any, stand_in: Any, error: Any, code: int) -> None:
    stand_in("train", error("is torn", where="runs/a", cure="Mend it."))
    done = cxrlt("train", "r.yaml", "-q")
    assert done.code == code
    assert done.out == ""
    head = "" if code > 100 else "error: "
    assert done.err == f"{head}runs/a: is torn\nMend it.\n"


def test_many_problems_stand_below_each_other(cxrlt: Any, stand_in: Any) -> None:
    stand_in("train", errors.UsageError("r.yaml:1:1: a\nr.yaml:2:1: b"))
    assert cxrlt("train", "r.yaml", "-q").err == "error:\nr.yaml:1:1: a\nr.yaml:2:1: b\n"


def test_a_message_of_several_lines_keeps_its_place_in_front(cxrlt: Any, stand_in: Any) -> None:
    stand_in("train", errors.RunError("was made with another recipe:\n  a: 1 -> 2", where="runs/a"))
    assert cxrlt("train", "r.yaml", "-q").err == "error: runs/a: was made with another recipe:\n  a: 1 -> 2\n"


def test_verbose_tells_the_cause(cxrlt: Any, stand_in: Any) -> None:
    error = errors.DataError("cannot be read")
    error.__cause__ = ValueError("deep down")
    stand_in("train", error)
    assert "deep down" not in cxrlt("train", "r.yaml").err
    assert "ValueError: deep down" in cxrlt("train", "r.yaml", "-v").err


def test_a_bug_is_a_short_message_and_a_kept_traceback(cxrlt: Any, stand_in: Any) -> None:
    stand_in("train", KeyError("absent"))
    done = cxrlt("train", "r.yaml", "-q")
    assert done.code == 1
    assert "error: KeyError: 'absent'" in done.err
    assert "This is a bug in cxrlt or in a plugin" in done.err
    assert "Traceback" not in done.err
    file = Path(done.err.partition("The traceback is in ")[2].partition(";")[0])
    assert "KeyError: 'absent'" in file.read_text()
    file.unlink()


def test_a_bug_with_verbose_shows_the_traceback(cxrlt: Any, stand_in: Any) -> None:
    stand_in("train", KeyError("absent"))
    done = cxrlt("train", "r.yaml", "-v")
    assert "Traceback (most recent call last)" in done.err
    assert "The traceback is in" not in done.err


def test_a_full_disk_is_no_bug(cxrlt: Any, stand_in: Any) -> None:
    stand_in("train", OSError(28, "No space left on device", "runs/a/x"))
    done = cxrlt("train", "r.yaml", "-v")
    assert done.code == 1
    assert "error: runs/a/x: No space left on device\n" in done.err
    assert "bug" not in done.err.partition("Traceback")[0]


def test_ctrl_c_is_130(cxrlt: Any, stand_in: Any) -> None:
    stand_in("train", KeyboardInterrupt())
    done = cxrlt("train", "r.yaml", "-q")
    assert (done.code, done.err) == (130, "interrupted\n")


def test_of_several_processes_the_one_that_fails_says_which(
    cxrlt: Any, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("train", errors.TrainingError("out of memory"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cxrlt("train", "r.yaml").err == "[process 1] error: out of memory\n"


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    script = f"'{sys.executable}' -m cxrlt_cli recipe schema | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "141"}


def test_a_terminal_that_knows_no_unicode(tmp_path: Path) -> None:
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "cxrlt_cli", "plugins", "list"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
    assert "ldam" in done.stdout
