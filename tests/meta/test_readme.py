"""README.md and the other documents: their commands run, their output is what they show, their links lead somewhere.

Commands stand in ``console`` blocks after a ``$``; the lines below one are what it prints, with ``...`` for what is
left out. Blocks called ``file=NAME`` are files of the reader's folder.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer

from cxrlt_cli import registry
from cxrlt_cli.cli import app, main
from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.posterior import derive
from cxrlt_cli.recipe.load import load_recipe
from cxrlt_cli.recipe.schema import Reweight
from cxrlt_cli.reweight import class_weights

ROOT = Path(__file__).resolve().parents[2]
README, TUTORIAL, HOWTO = ROOT / "README.md", ROOT / "docs/tutorial.md", ROOT / "docs/howto.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*/README.md"))]

#: What a test runs in place of what is written, so that it takes seconds and needs nothing.
SMALLER = {
    "train.epochs=4": "train.epochs=1",
    "--size 512": "--size 32",
    "--devices 2": "--devices 2 --dry-run",  # several processes have tests of their own
    "train mine.yaml": "train mine.yaml --dry-run",  # twenty epochs
}
#: Programs whose commands are not run here, and why.
NOT_RUN = {
    "make": "their targets are looked up below; .ci/run calls them",
    "pip": ".ci/run installs the wheel and a plugin; the files concerned are looked up below",
    "uv": "as pip",
    "torchrun": "the arguments after the module are parsed below; several processes have tests of their own",
    "python3": "makes an environment",
    "source": "enters it",
}


class Block(NamedTuple):
    """A fenced block: its language, what follows the language, its text."""

    language: str
    title: str
    text: str


class Step(NamedTuple):
    """A command as written, and the lines shown below it."""

    command: str
    shown: list[str]


class Done(NamedTuple):
    """A command that was run: as written, the lines shown for it, exit status, and all it printed."""

    command: str
    shown: list[str]
    code: object
    printed: str


def blocks(document: Path) -> list[Block]:
    found = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)
    return [Block(*parts) for parts in found]


def steps(document: Path) -> Iterator[Step]:
    for block in blocks(document):
        if block.language == "console":
            for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
                command, *shown = part.splitlines()
                yield Step(command, shown)


def files(document: Path) -> dict[str, str]:
    return {block.title.removeprefix("file="): block.text for block in blocks(document) if "file=" in block.title}


# -- running -------------------------------------------------------------------------------------------------------


def smaller(command: str) -> str:
    for written, run in SMALLER.items():
        command = command.replace(written, run)
    return command


def perform(command: str) -> tuple[object, str]:
    """Run a command in this process; the exit status, and stdout and stderr together."""
    program, *arguments = shlex.split(command)
    printed, code = io.StringIO(), None
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", [program, *arguments])
        try:
            if program == "cxrlt":
                main()
            else:
                assert program == "python", command
                runpy.run_path(arguments[0])
        except SystemExit as end:
            code = end.code
    return code or 0, printed.getvalue()


def walk(document: Path, folder: Path) -> Iterator[Done]:
    """Run the commands of a document in ``folder``, in their order."""
    with contextlib.chdir(folder):
        for command, shown in steps(document):
            if command.split()[0] not in NOT_RUN:
                yield Done(command, shown, *perform(smaller(command)))


def furnish(document: Path, folder: Path) -> None:
    """Write the files a document shows, and install the packages among them as an installer would."""
    for name, text in files(document).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for path in folder.glob("*/pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        info = path.parent / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        groups = project["entry-points"].items()
        lines = [text for group, names in groups for text in (f"[{group}]", *(f"{k} = {v}" for k, v in names.items()))]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[None]:
    """The packages below ``folder`` on the path of this process."""
    with pytest.MonkeyPatch.context() as patch:
        for path in folder.glob("*/pyproject.toml"):
            patch.syspath_prepend(path.parent)
        registry._scan.cache_clear()
        yield
    registry._scan.cache_clear()


def radiographs(folder: Path) -> None:
    """The reader's own images, and the rest of the table that README.md begins."""
    from PIL import Image

    table = folder / "labels.csv"
    header, *rows = table.read_text().splitlines()
    assert header.startswith("image_id,patient_id,view,")
    rows += [f"{n:05d}_a.png,{n:04d},PA,{n % 2},{n % 3 // 2},{n % 5 // 4}" for n in range(3, 60)]
    table.write_text("\n".join([header, *rows]) + "\n")
    (folder / "radiographs").mkdir()
    for number, row in enumerate(rows):
        grey = np.random.default_rng(number).integers(0, 4096, (40, 36)).astype(np.uint16)
        Image.fromarray(grey).save(folder / "radiographs" / row.partition(",")[0])


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Done]]]:
    """The folder in which the commands of README.md were run, and what came of them."""
    folder = tmp_path_factory.mktemp("readme")
    furnish(README, folder)
    radiographs(folder)
    shutil.copytree(ROOT / "docs/images/samples", folder / "docs/images/samples")
    with installed(folder):
        yield folder, list(walk(README, folder))


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Done]]:
    folder = tmp_path_factory.mktemp("tutorial")
    furnish(TUTORIAL, folder)
    with installed(folder):
        yield list(walk(TUTORIAL, folder))


def outline(line: str, *, exact: bool) -> str:
    """A printed line without the width of its columns; unless ``exact``, without its numbers too."""
    line = re.sub(r"─+", "─", " ".join(line.split()))
    return line if exact else re.sub(r"[-+]?(?:\d[\d,.]*|\.\d+)(e[-+]\d+)?( epoch(?!s))?", _number, line)


def _number(found: re.Match[str]) -> str:
    return "# epochs" if found[2] else "#"


def check(done: list[Done]) -> None:
    """Every command succeeded, and every line shown was printed: as it is where it does not depend on the machine."""
    assert done
    for step in done:
        assert step.code == 0, f"{step.command}\n{step.printed}"
        unchanged = smaller(step.command) == step.command
        exact = unchanged and not {"train", "evaluate"} & set(step.command.split()) and "csv" not in step.command
        printed = {outline(line, exact=exact) for line in step.printed.splitlines()}
        missing = [line for line in step.shown if line != "..." and outline(line, exact=exact) not in printed]
        assert not missing, f"{step.command} does not print\n" + "\n".join(missing) + f"\nbut\n{step.printed}"


def test_the_commands_of_the_readme(readme: tuple[Path, list[Done]]) -> None:
    check(readme[1])
    assert {"prepare", "train", "evaluate", "predict", "recipe", "plugins"} <= {
        step.command.split()[1] for step in readme[1]
    }


def test_the_commands_of_the_tutorial(tutorial: list[Done]) -> None:
    check(tutorial)


def test_the_python_of_the_howto(readme: tuple[Path, list[Done]], capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = [block.text for block in blocks(HOWTO) if block.language == "python"]
    with contextlib.chdir(readme[0]):
        exec(compile(source, "howto.md", "exec"), {})
    assert "Pneumothorax" in capsys.readouterr().out


def test_the_recipe_of_the_howto(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(files(HOWTO)["mine.yaml"])
    assert load_recipe(str(tmp_path / "mine.yaml")).reweight.cap == 50


def test_the_run_directory_is_as_the_readme_draws_it(readme: tuple[Path, list[Done]]) -> None:
    (tree,) = [block.text for block in blocks(README) if block.text.startswith("recipe.resolved.yaml")]
    drawn = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    assert {path.name for path in (readme[0] / "runs/demo_phantom").iterdir()} == drawn - {"last"}


# -- what is not run -----------------------------------------------------------------------------------------------


def commands(program: str) -> list[tuple[str, list[str]]]:
    """(document, arguments) of every command of a program, in all documents and in the comments of the recipes."""
    found = [
        (document.name, shlex.split(step.command)[1:])
        for document in DOCUMENTS
        for step in steps(document)
        if step.command.split()[0] == program
    ]
    for recipe in sorted(ROOT.glob("recipes/*.yaml")):
        lines = re.findall(rf"^#   {program} (.*)$", recipe.read_text(), re.M)
        found += [(recipe.name, shlex.split(line)) for line in lines]
    return found


def parse(arguments: list[str]) -> None:
    """Parse the arguments of ``cxrlt`` as the command line does; an error where it would be one."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "list_commands"):
        name, *arguments = arguments
        if name.startswith("-"):
            return
        command = command.get_command(None, name)
        assert command is not None, f"there is no command {name!r}"
    command.make_context(command.name, arguments)


@pytest.mark.parametrize(("document", "arguments"), commands("cxrlt"), ids=" ".join)
def test_every_command_parses(document: str, arguments: list[str]) -> None:
    parse(arguments)


def test_the_parser_would_notice() -> None:
    for wrong in (["train"], ["train", "x", "--nothing"], ["prepare", "csv", "x", "--count", "3"]):
        with pytest.raises(Exception, match=r"(?i)missing|no such option"):
            parse(wrong)


def test_torchrun_commands_parse() -> None:
    for _, arguments in commands("torchrun"):
        assert arguments[2:4] == ["-m", "cxrlt_cli"]
        parse(arguments[4:])


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {argument for _, arguments in commands("make") for argument in arguments}
    assert {"demo", "test"} <= named <= targets
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.M)


def test_the_newcomer_sees_two_commands_first() -> None:
    assert [step.command for step in steps(README)][:2] == ["make demo", "make test"]


def test_what_pip_is_to_install_is_there() -> None:
    for document, arguments in [*commands("pip"), *commands("uv")]:
        (target,) = [argument for argument in arguments if argument.startswith(("./", "CLONE"))] or ["."]
        shown = files(README) | files(TUTORIAL)
        assert target in {".", "CLONE"} or f"{target[2:]}/pyproject.toml" in shown or (ROOT / target).is_dir(), document


# -- statements ----------------------------------------------------------------------------------------------------


def test_the_posteriors_of_the_first_table() -> None:
    from cxrlt_plugins.datasets.phantom_art.vocabulary import PUBLISHED, PUBLISHED_IMAGES

    counts = tuple(PUBLISHED.values())
    stats = ClassStats(tuple(PUBLISHED), counts, tuple(PUBLISHED_IMAGES - count for count in counts))

    def at_zero(loss: str, reweight: Reweight) -> str:
        link = derive(registry.build("losses", {"name": loss}, stats), *class_weights(stats, reweight, 1.0))
        assert link is not None
        ends = [f"{value:.3f}" for value in np.quantile(link.posterior(np.zeros((1, len(counts)))), [0, 1])]
        return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}, by class"

    published = Reweight(scheme="effective", beta=0.9999, relative_to="mean")
    rows = re.findall(r"^  \| (.*?) \| ([\d., a-z]+) \|$", README.read_text(), re.M)
    assert [value for _, value in rows] == [
        at_zero("bce", Reweight()),
        at_zero("asl", Reweight()),
        at_zero("ldam", Reweight()),
        at_zero("ldam", published),
    ]
    weights = class_weights(stats, published, 1.0)[0]
    text = " ".join((ROOT / "docs/explanation.md").read_text().split())
    assert f"{(weights < 1).sum()} of {len(counts)} classes get a weight below 1" in text
    assert f"`Normal` gets {weights[0]:.3f}" in text
    assert f"The rarest class gets {weights.max():.1f}" in text


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.split(r"[><=~\[ ]", requirement)[0] for requirement in wanted}
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    assert {row[0] for row in rows} - {"runtime", "development"} == names
    assert all(all(row) and len(row) == 4 for row in rows)


def slug(heading: str) -> str:
    """The anchor of a heading on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{target} is not there"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), f"{target}: no such heading"


@pytest.mark.parametrize("name", ["explanation", "howto", "reference"])
def test_tables_of_contents_are_whole(name: str) -> None:
    text = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.M)
    assert re.findall(r"^- \[(.*)\]\(#.*\)$", text.partition("\n## ")[0], re.M) == headings
