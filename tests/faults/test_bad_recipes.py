"""Bad recipes on the command line: what is said, where, and with which exit status. Nothing is ever written."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

GOOD = """\
data: {path: data/x}
model:
  backbone: {name: net, width: 8}
loss: {name: one, scale: 20}
optim:
  lr: 3e-4
"""


@pytest.fixture(autouse=True)
def light(install: Any, cxrlt: Any) -> None:
    """Plugins that need no torch, in the working directory of the command line."""
    sources = {
        "light": "def net(in_chans, image_size, *, width: int = 8): ...\ndef one(stats, *, scale: float = 1.0): ...\n"
    }
    install("light", "[cxrlt.losses]\none = light:one\n[cxrlt.backbones]\nnet = light:net\n", sources)


@pytest.fixture(params=["validate", "train", "train --dry-run"])
def refuse(request: pytest.FixtureRequest, cxrlt: Any) -> Any:
    """Give a recipe to a command that must refuse it; (exit status, message)."""

    def run(text: str | bytes, *overrides: str) -> tuple[int, str]:
        Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        settings = [part for override in overrides for part in ("--set", override)]
        if request.param == "validate":
            assert not settings, "validate takes no --set"
            done = cxrlt("recipe", "validate", "r.yaml")
        else:
            done = cxrlt(*request.param.split(), "r.yaml", *settings)
        assert done.out == ""
        assert "Traceback" not in done.err
        assert not Path("runs").exists()
        return done.code, done.err

    return run


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("  weigth_decay: 1", 2, "r.yaml:7:3: unknown key 'optim.weigth_decay'. Did you mean 'weight_decay'?"),
        ("train: {epochs: many}", 2, "r.yaml:7:9: train.epochs: expected a whole number, got the text 'many'"),
        ("  lr: 1e-3", 2, "r.yaml:7:3: the key 'lr' stands twice; first at line 6, column 3"),
        ("optim: {}", 2, "r.yaml:7:1: the key 'optim' stands twice; first at line 5, column 1"),
        ("sampler: unifrom", 4, "r.yaml:7:1: sampler: there is no sampler 'unifrom'. Did you mean 'uniform'?"),
        ("predict: {tta: flop}", 4, "there is no test-time augmentation 'flop'. Did you mean 'flip'?"),
        ("sampler: acme:uniform", 4, "there is no sampler 'acme:uniform'. Did you mean 'uniform'?"),
        (
            "about: !!python/object/apply:os.system ['touch pwned']",
            2,
            "the tag '!!python/object/apply:os.system' is not",
        ),
        ("about: ${HOME}", 0, ""),
        ("extends: ../../etc/passwd", 2, "there is no recipe"),
        ("\tfoo: 1", 2, "r.yaml:7:1: not valid YAML: a tab stands where YAML wants spaces"),
        ("foo: [1, 2", 2, "not valid YAML"),
    ],
)
def test_one_bad_line(refuse: Any, cxrlt: Any, line: str, code: int, message: str) -> None:
    if code == 0:  # no interpolation: the text is just text
        Path("r.yaml").write_text(GOOD + line + "\n")
        assert cxrlt("recipe", "validate", "r.yaml").code == 0
        return
    found, said = refuse(GOOD + line + "\n")
    assert message in said
    assert found == code
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("optim.lr=abc", 2, "--set optim.lr=abc: optim.lr: expected a number, got the text 'abc'"),
        ("optim.lr", 2, "--set optim.lr: expected section.key=value, such as optim.lr=3e-4"),
        ("epochs=3", 2, "--set epochs=3: unknown key 'epochs'. Did you mean 'train.epochs'?"),
        ("loss=onne", 4, "--set loss=onne: loss: there is no loss 'onne'. Did you mean 'one'?"),
        ("loss.scale=big", 4, "option 'scale' of the loss 'one': expected a number, got the text 'big'"),
    ],
)
@pytest.mark.parametrize("refuse", ["train", "train --dry-run"], indirect=True)
def test_one_bad_override(refuse: Any, override: str, code: int, message: str) -> None:
    found, said = refuse(GOOD, override)
    assert message in said
    assert found == code


def test_every_problem_is_said_at_once(refuse: Any) -> None:
    text = GOOD.replace("path: data/x", "path: 3") + "  foo: 1\n  lr: 2\nloss2: bar\nsampler: unifrom\n"
    code, said = refuse(text)
    assert code == 2
    assert said.startswith("error:\nr.yaml:1:8: data.path: expected text, got the number 3\n")
    places = [line.split(": ")[0] for line in said.splitlines()[2:6]]
    assert places == ["r.yaml:7:3", "r.yaml:8:3", "r.yaml:9:1", "r.yaml:10:1"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"null\n",
        b"- 1\n",
        b"word\n",
        b"\x00\x01\x02",
        b"\xff\xfe\x00",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(range(256)),
        b"{" * 50_000,
        b"- " * 50_000,
        b"a: &a [*a, *a]\n",
        b"x" * 2_000_000,
        b"? {a: b}\n: 3\n",
        b"%YAML 9.9\n---\na: 1\n",
        b"a: |\n b\n  c: 1\n d",
        b"'a\n",
        b"&a\n",
        b"*a\n",
        b"!x\n",
        b"--- 1\n--- 2\n",
        b"a: 1\n...\ngarbage: [\n",
        "a: \u2028b\n\u0085".encode(),
    ],
)
def test_what_is_no_recipe_at_all(refuse: Any, content: bytes) -> None:
    code, said = refuse(content)
    assert code == 2
    assert said.startswith("error:")
    assert "bug" not in said


def test_a_folder(cxrlt: Any) -> None:
    Path("folder.yaml").mkdir()
    done = cxrlt("train", "folder.yaml")
    assert done.code == 2
    assert "'folder.yaml' is a directory, not a recipe." in done.err


def test_an_absent_file_offers_what_is_near(cxrlt: Any) -> None:
    Path("mine.yaml").write_text(GOOD)
    assert "Did you mean 'mine.yaml'?" in cxrlt("train", "mien.yaml").err
    assert "Did you mean 'demo_phantom'?" in cxrlt("train", "recipes/demo_phantm.yaml").err
    assert cxrlt("train", "nothing-like-it").code == 2


def test_an_unreadable_file(cxrlt: Any, deny: Any) -> None:
    Path("r.yaml").write_text(GOOD)
    deny(Path("r.yaml"))
    assert "Permission denied" in cxrlt("train", "r.yaml").err


def test_a_recipe_from_a_pipe(cxrlt: Any, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as writer:
        written = writer.submit(pipe.write_text, GOOD)
        assert cxrlt("recipe", "validate", pipe).code == 0
        written.result()
