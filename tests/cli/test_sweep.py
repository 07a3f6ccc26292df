"""``cxrlt sweep`` as a user runs it, with commands that stand in for training: order, skipping, failing, stopping."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from factories import make_dataset, make_run, write_logits

from cxrlt_cli.artifacts import RunDir, read_card
from cxrlt_cli.commands import sweep
from cxrlt_cli.commands.opening import stamp
from cxrlt_cli.commands.sweep.engines import Command, Local, devices_here, make_engine
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.errors import Interrupted, RunError, UsageError
from cxrlt_cli.events import Event, Finished, Notice, Table
from cxrlt_cli.recipe.load import dump_recipe, load_recipe

TABLE = """\
base: base.yaml
seeds: [0, 1]
reference: plain
resamples: 50
rows:
  - {name: plain}
  - {name: other, set: {loss: asl}}
"""
BASE = """\
data: {path: data}
model: {backbone: {name: timm, model: test_resnet, pretrained: false}, in_chans: 1}
predict: {calibration: none, threshold: "0.5"}  # quick
"""


@dataclass
class Stage:
    """An engine that does at once, in this process, what a command would do; some are told to fail."""

    prepared: Prepared
    failing: set[str] = field(default_factory=set)
    started: list[str] = field(default_factory=list)
    slots: int = 2

    def start(self, command: Command, slot: int) -> Any:
        self.started.append(command.name)
        words = command.arguments
        if words[0] == "train":
            self._train(command)
        elif words[0] == "predict":
            run = RunDir(Path(words[1]))
            write_logits(run, self.prepared, words[3], seed=len(self.started))
            stamp(run.predictions(words[3]), read_card(run.model), "none")
        return Done(1 if command.name in self.failing else 0)

    def _train(self, command: Command) -> None:
        words = list(command.arguments)
        path = Path(words[words.index("--out") + 1])
        command.log.parent.mkdir(parents=True, exist_ok=True)
        command.log.write_text("first line\nerror: it broke\n")
        if command.name in self.failing:
            return
        settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
        recipe = load_recipe(words[1], settings)
        path.mkdir(parents=True)
        run = make_run(path, self.prepared, weights=False)
        run.recipe.write_text(dump_recipe(recipe))
        write_logits(run, self.prepared, "dev", seed=recipe.train.seed)


@dataclass
class Done:
    code: int

    def poll(self) -> int:
        return self.code

    def stop(self, number: int) -> None:
        """Nothing runs any more."""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A folder with a dataset, a base recipe and a table; commands are acted."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("table.yaml").write_text(TABLE)
    acted = Stage(make_dataset(Path("data"), count=120))
    monkeypatch.setattr(sweep, "make_engine", lambda *_: acted)
    return acted


def told(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice | Finished) and event.text]


# -- what runs -----------------------------------------------------------------------------------------------------


def test_every_row_is_trained_and_scored(stage: Stage) -> None:
    result = sweep.run("table.yaml")
    assert stage.started == ["plain-0", "plain-1", "other-0", "other-1"]  # dev is predicted by training itself
    assert (result.code, result.data["unfinished"]) == (0, [])
    rows = result.data["rows"]
    assert [row["name"] for row in rows] == ["plain", "other"]  # type: ignore[attr-defined,index]
    assert {path.name for path in Path("runs/table").glob("table.*")} == {
        "table.csv",
        "table.md",
        "table.tex",
        "table.json",
    }


def test_what_is_finished_is_left_alone(stage: Stage) -> None:
    first = sweep.run("table.yaml")
    stage.started.clear()
    again = sweep.run("table.yaml")
    assert stage.started == []
    assert repr(again.data["rows"]) == repr(first.data["rows"])  # nan is not equal to itself


def test_only_what_is_missing_runs(stage: Stage) -> None:
    sweep.run("table.yaml")
    (Path("runs/table/other-1") / "run.json").unlink()
    (Path("runs/table/other-1") / "model.safetensors").unlink()
    for path in sorted(Path("runs/table/other-1").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    Path("runs/table/other-1").rmdir()
    stage.started.clear()
    sweep.run("table.yaml")
    assert stage.started == ["other-1"]


def test_a_new_row_is_added(stage: Stage) -> None:
    sweep.run("table.yaml")
    stage.started.clear()
    Path("table.yaml").write_text(TABLE + "  - {name: third, set: {optim.lr: 1e-3}}\n")
    assert len(sweep.run("table.yaml").data["rows"]) == 3  # type: ignore[arg-type]
    assert stage.started == ["third-0", "third-1"]


def test_runs_of_another_recipe_are_refused(stage: Stage) -> None:
    sweep.run("table.yaml")
    Path("table.yaml").write_text(TABLE.replace("{loss: asl}", "{loss: asl, optim.lr: 0.5}"))
    stage.started.clear()
    with pytest.raises(RunError) as caught:
        sweep.run("table.yaml")
    assert "runs/table/other-0: optim.lr: 0.0001 -> 0.5" in caught.value.what
    assert "runs/table/other-1" in caught.value.what
    assert "plain" not in caught.value.what
    assert stage.started == []


def test_runs_on_other_data_are_refused(stage: Stage) -> None:
    sweep.run("table.yaml")
    (Path("data") / "dataset.json").unlink()
    make_dataset(Path("data2"), count=60, seed=4)
    with pytest.raises(RunError, match="was trained on other data than data2 holds now"):
        sweep.run("table.yaml", overrides=["data.path=data2"])


def test_predictions_of_test_are_steps_of_their_own(stage: Stage) -> None:
    result = sweep.run("table.yaml", split="test")
    assert len(stage.started) == 8
    assert stage.started.index("plain-0") < stage.started.index("plain-0 on test")
    assert result.data["split"] == "test"


def test_predictions_of_older_weights_are_made_again(stage: Stage) -> None:
    sweep.run("table.yaml", split="test")
    run = RunDir(Path("runs/table/plain-0"))
    table = run.predictions("test")
    from dataclasses import replace

    stamp(table, replace(read_card(run.model), epoch=99), "none")
    stage.started.clear()
    sweep.run("table.yaml", split="test")
    assert stage.started == ["plain-0 on test"]


def test_dry_run_writes_nothing(stage: Stage) -> None:
    result = sweep.run("table.yaml", dry_run=True)
    assert not Path("runs").exists()
    steps = result.data["steps"]
    assert [step["name"] for step in steps if not step["done"]][:2] == ["plain-0", "plain-0 on dev"]  # type: ignore[attr-defined,index]
    assert steps[0]["command"][:3] == ["cxrlt", "train", "base.yaml"]  # type: ignore[index]


def test_dry_run_shows_a_narrow_table_and_a_line_for_each_command_to_run(stage: Stage) -> None:
    def shown() -> tuple[Table, list[str]]:
        result = sweep.run("table.yaml", dry_run=True)
        table, *texts = result.blocks
        assert isinstance(table, Table)
        lines = [line for text in texts[:-1] for line in str(text).splitlines()]
        to_run = [step["command"] for step in result.data["steps"] if not step["done"]]  # type: ignore[attr-defined]
        assert [shlex.split(line) for line in lines] == to_run
        return table, lines

    table, commands = shown()
    assert all(sum(map(len, row)) < 80 for row in table.rows)
    assert table.rows[:2] == (("plain-0", "train", "-", "runs"), ("plain-0 on dev", "predict", "plain-0", "runs"))
    assert len(commands) == len(table.rows)
    sweep.run("table.yaml")
    table, commands = shown()
    assert {row[-1] for row in table.rows} == {"is there"}
    assert commands == []


def test_plugins_are_checked_before_anything_runs(stage: Stage) -> None:
    from cxrlt_cli.errors import PluginError

    Path("table.yaml").write_text(TABLE.replace("{loss: asl}", "{loss: {name: asl, gama_neg: 2}}"))
    with pytest.raises(PluginError, match="Did you mean 'gamma_neg'"):
        sweep.run("table.yaml")
    Path("table.yaml").write_text(TABLE + "  - {name: mirrored, of: plain, tta: flop}\n")
    with pytest.raises(PluginError, match="Did you mean 'flip'"):
        sweep.run("table.yaml")
    row = "  - {name: anew, of: plain, retrain: crt}\n  - {name: mirrored, of: anew, tta: flip}\n"
    Path("table.yaml").write_text(TABLE + row)
    with pytest.raises(UsageError, match=r"'flip' needs augment\.flip, which training would not have") as caught:
        sweep.run("table.yaml")
    assert caught.value.where == "plain-0: tta"
    Path("table.yaml").write_text(TABLE + row.replace("flip", "none"))
    sweep.run("table.yaml", dry_run=True)
    assert stage.started == []


# -- failing -------------------------------------------------------------------------------------------------------


def test_a_failed_row_does_not_stop_the_others(stage: Stage) -> None:
    stage.failing.add("plain-1")
    events: list[Event] = []
    result = sweep.run("table.yaml", split="test", emit=events.append)
    assert "other-1 on test" in stage.started
    assert "plain-1 on test" not in stage.started
    assert (result.code, result.data["unfinished"]) == (1, ["plain"])
    lines = "\n".join(told(events))
    assert "plain-1 failed with exit code 1" in lines
    assert "error: it broke" in lines
    assert "plain-1 on test is left out: what it needs failed" in lines
    assert "the reference 'plain' is not finished" in lines
    assert "left out of the table, as not all of their runs are finished: plain" in lines


def test_a_failed_run_is_tried_again(stage: Stage) -> None:
    stage.failing.add("plain-1")
    sweep.run("table.yaml")
    stage.failing.clear()
    stage.started.clear()
    assert sweep.run("table.yaml").code == 0
    assert stage.started == ["plain-1"]


def test_no_finished_row_is_an_error(stage: Stage) -> None:
    stage.failing |= {"plain-0", "other-1"}
    with pytest.raises(RunError, match="no row is finished"):
        sweep.run("table.yaml")


# -- processes -----------------------------------------------------------------------------------------------------


def poll(done: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.05)


def test_a_command_runs_and_is_logged(tmp_path: Path) -> None:
    handle = Local(1).start(Command("v", ("--version",), tmp_path / "logs/v.log", tmp_path), 0)
    poll(lambda: handle.poll() is not None)
    assert handle.poll() == 0
    assert (tmp_path / "logs/v.log").read_text().splitlines()[0] == "$ cxrlt --version"
    assert "cxrlt " in (tmp_path / "logs/v.log").read_text().splitlines()[1]


def test_a_wrong_command_ends_with_its_exit_code(tmp_path: Path) -> None:
    handle = Local(1).start(Command("v", ("train", "absent.yaml"), tmp_path / "v.log", tmp_path), 0)
    poll(lambda: handle.poll() is not None)
    assert handle.poll() == 2
    assert "there is no recipe 'absent.yaml'" in (tmp_path / "v.log").read_text()


def test_devices_are_dealt_out_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    engine = make_engine("local", None, (), Path(), 9)
    assert isinstance(engine, Local)
    assert (engine.slots, engine.devices) == (2, ("3", "5"))
    many = Local(3, engine.devices)
    assert [many.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["3", "5", "3"]


def test_hidden_devices_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert devices_here() == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices_here() == ()


def test_cores_are_shared_unless_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert Local(3).environment(0) == {"OMP_NUM_THREADS": "2"}
    assert Local(16).environment(0) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert Local(3).environment(0) == {"OMP_NUM_THREADS": "5"}


def test_settings_of_an_engine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this machine takes no --engine-set"):
        make_engine("local", None, ("a=1",), tmp_path, 1)
    with pytest.raises(UsageError, match="expected key=value"):
        make_engine("ray", None, ("num_gpus",), tmp_path, 1)


@pytest.mark.parametrize("name", ["submitit", "ray"])
def test_an_engine_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=f"{name} is not installed") as caught:
        make_engine(name, None, (), tmp_path, 1)
    assert f"cxrlt[{name}]" in caught.value.cure


class Sleeper:
    """An engine whose commands are processes that wait for a signal."""

    slots = 2

    def __init__(self, stubborn: bool = False) -> None:
        ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN); " if stubborn else ""
        self.code = f"import signal, time; {ignore}print('up', flush=True); time.sleep(100)"
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, command: Command, slot: int) -> Any:
        program = [sys.executable, "-c", self.code]
        process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        self.processes.append(process)
        if len(self.processes) == self.slots:
            os.kill(os.getpid(), signal.SIGINT)

        @dataclass
        class Handle:
            process: subprocess.Popen[str]

            def poll(self) -> int | None:
                return self.process.poll()

            def stop(self, number: int) -> None:
                self.process.send_signal(number)

        return Handle(process)


def test_ctrl_c_stops_the_commands_and_the_sweep_can_go_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = Sleeper()
    monkeypatch.setattr(sweep, "make_engine", lambda *_: asleep)
    with pytest.raises(Interrupted) as caught:
        sweep.run("table.yaml")
    assert caught.value.code == 130
    assert "interrupted with 0 of 8 steps done; plain-0, plain-1 saved what they had" in caught.value.what
    assert caught.value.cure == "The same command continues."
    assert [process.returncode for process in asleep.processes] == [-signal.SIGINT] * 2
    monkeypatch.setattr(sweep, "make_engine", lambda *_: stage)
    assert sweep.run("table.yaml").code == 0


def test_commands_that_do_not_stop_are_killed() -> None:
    from cxrlt_cli.commands.sweep.engines import stop_all

    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        class Handle:
            def poll(self) -> int | None:
                return process.poll()

            def stop(self, number: int) -> None:
                process.send_signal(number)

        stop_all([Handle()], signal.SIGINT, seconds=0.3)
        assert process.wait(10) == -signal.SIGKILL


def test_a_child_ends_with_a_killed_parent() -> None:
    """The parent starts a command that would run on, and is killed; the kernel tells the command to end."""
    child = (
        "import runpy, sys, time\n"
        "import cxrlt_cli.cli\n"
        "cxrlt_cli.cli.main = lambda: (print('up', flush=True), time.sleep(100))\n"
        "runpy.run_module('cxrlt_cli', run_name='__main__')\n"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        f"c = subprocess.Popen([sys.executable, '-c', {child!r}], env={{**os.environ, 'CXRLT_END_WITH_PARENT': '1'}},"
        " stdout=subprocess.PIPE, start_new_session=True)\n"
        "c.stdout.readline(); print(c.pid, flush=True); time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    poll(gone, 20)


# -- engines of clusters, in their local modes ---------------------------------------------------------------------


def test_submitit_runs_a_command_as_a_job(tmp_path: Path) -> None:
    engine = make_engine("submitit", None, ("cluster=local", "timeout_min=5"), tmp_path, 2)
    assert engine.slots == 2
    good = engine.start(Command("a b", ("--version",), tmp_path / "good.log", tmp_path), 0)
    bad = engine.start(Command("bad", ("train", "absent.yaml"), tmp_path / "bad.log", tmp_path), 1)
    poll(lambda: good.poll() is not None and bad.poll() is not None, 120)
    assert (good.poll(), bad.poll()) == (0, 2)
    assert "there is no recipe 'absent.yaml'" in (tmp_path / "bad.log").read_text()


def test_submitit_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="submitit refuses these settings"):
        make_engine("submitit", None, ("cluster=local", "nonsense=1"), tmp_path, 2)


def test_a_preempted_job_is_queued_again_with_the_same_command(tmp_path: Path) -> None:
    from cxrlt_cli.commands.sweep.engines import Remote

    command = Command("a", ("train", "x"), tmp_path / "a.log", tmp_path)
    remote = Remote(command)
    remote.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    again = remote.checkpoint()
    assert remote.process.returncode == -signal.SIGTERM
    assert again.function.command == command


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_runs_a_command_as_a_task(ray_here: None, tmp_path: Path) -> None:
    engine = make_engine("ray", None, ("num_cpus=1",), tmp_path, 2)
    good = engine.start(Command("good", ("--version",), tmp_path / "good.log", tmp_path), 0)
    bad = engine.start(Command("bad", ("train", "absent.yaml"), tmp_path / "bad.log", tmp_path), 1)
    poll(lambda: good.poll() is not None and bad.poll() is not None, 180)
    assert (good.poll(), bad.poll()) == (0, 2)


# -- the command line ----------------------------------------------------------------------------------------------


def test_the_table_is_printed_in_the_form_asked_for(stage: Stage, cxrlt: Any) -> None:
    shown = cxrlt("sweep", "table.yaml", "--format", "csv", "-q")
    assert shown.code == 0
    assert shown.out == Path("runs/table/table.csv").read_text()
    assert cxrlt("sweep", "table.yaml", "--format", "latex", "-q").out.startswith("% \\usepackage{booktabs}")
    assert json.loads(Path("runs/table/table.json").read_text())["reference"] == "plain"
    data = cxrlt("sweep", "table.yaml", "--json").json
    assert data["rows"][1]["difference"]["macro_ap"].keys() >= {"value", "low", "high", "p", "p_holm", "detectable"}


def test_a_recipe_is_sent_to_train(stage: Stage, cxrlt: Any) -> None:
    done = cxrlt("sweep", "base.yaml")
    assert done.code == 2
    assert "is a recipe to train, not a sweep" in done.err
