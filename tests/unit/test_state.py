"""The saved state: exact, and proven whole before it is used."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from cxrlt_cli.engine.state import Progress, discard_states, read_state, restore, save_state, sweep
from cxrlt_cli.errors import RunError
from cxrlt_cli.events import Event, Notice, silent


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def trained(seed: int, steps: int = 3) -> tuple[nn.Module, torch.optim.AdamW, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 1, 4, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer, {name: value.clone() + 1 for name, value in model.state_dict().items()}


def save(run: Path, seed: int, step: int) -> tuple[nn.Module, torch.optim.AdamW, dict[str, torch.Tensor]]:
    parts = trained(seed)
    save_state(run, Progress(step=step, history=[{"epoch": 1, "macro_ap": 0.1 + 0.2}]), *parts)
    return parts


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer, average = save(tmp_path, 0, 7)
    saved = read_state(tmp_path, silent)
    assert saved is not None
    fresh, again, mean = trained(1, steps=0)
    progress = restore(saved, fresh, again, mean)
    assert progress == Progress(step=7, history=[{"epoch": 1, "macro_ap": 0.1 + 0.2}])
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
        assert torch.equal(mean[name], average[name]), name
    for before, after in zip(optimizer.state.values(), again.state.values(), strict=True):
        assert all(torch.equal(before[key], after[key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    model, optimizer, _ = save(tmp_path, 0, 3)
    saved = read_state(tmp_path, silent)
    assert saved is not None
    fresh, again, mean = trained(5, steps=0)
    restore(saved, fresh, again, mean)
    batch = torch.randn(5, 1, 4, 4)
    for net, opt in ((model, optimizer), (fresh, again)):
        opt.zero_grad()
        net(batch).square().sum().backward()
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_no_state_is_no_state(tmp_path: Path) -> None:
    assert read_state(tmp_path, silent) is None


def torn_tensors(run: Path) -> None:
    file = run / "last" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def flipped_bit(run: Path) -> None:
    file = run / "last" / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))


def torn_json(run: Path) -> None:
    file = run / "last" / "state.json"
    file.write_text(file.read_text()[:-20])


def edited_json(run: Path) -> None:
    file = run / "last" / "state.json"
    document = json.loads(file.read_text())
    document["progress"]["step"] = 99
    file.write_text(json.dumps(document))


def mixed(run: Path) -> None:
    (run / "last" / "state.json").write_bytes((run / "previous" / "state.json").read_bytes())


def missing_tensors(run: Path) -> None:
    (run / "last" / "state.safetensors").unlink()


DAMAGE = [torn_tensors, flipped_bit, torn_json, edited_json, mixed, missing_tensors]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_told_and_the_one_before_is_used(tmp_path: Path, damage) -> None:
    save(tmp_path, 0, 10)
    save(tmp_path, 1, 20)
    damage(tmp_path)
    events: list[Event] = []
    saved = read_state(tmp_path, events.append)
    assert saved is not None
    assert saved.progress.step == 10
    (notice,) = events
    assert isinstance(notice, Notice)
    assert "damaged" in notice.text
    assert "step 10" in notice.text


def test_when_nothing_is_whole_it_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, 0, 10)
    torn_tensors(tmp_path)
    with pytest.raises(RunError, match="no saved state is whole"):
        read_state(tmp_path, silent)


def test_killed_between_the_two_renames_the_previous_one_is_there(tmp_path: Path) -> None:
    save(tmp_path, 0, 10)
    (tmp_path / "last").rename(tmp_path / "previous")
    saved = read_state(tmp_path, silent)
    assert saved is not None
    assert saved.progress.step == 10


def test_half_written_states_are_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".last.123.part").mkdir()
    (tmp_path / ".last.123.part" / "state.safetensors").write_bytes(b"half")
    save(tmp_path, 0, 1)
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]
    discard_states(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 0, 1)
    saved = read_state(tmp_path, silent)
    assert saved is not None
    other = nn.Linear(2, 2)
    with pytest.raises(RunError, match="does not fit this network"):
        restore(saved, other, torch.optim.AdamW(other.parameters()), None)


def test_a_full_disk_leaves_the_state_before_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 0, 10)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cxrlt_cli.engine.state.flush", full)
    with pytest.raises(RunError, match="No space left on device"):
        save(tmp_path, 1, 20)
    monkeypatch.undo()
    saved = read_state(tmp_path, silent)
    assert saved is not None
    assert saved.progress.step == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


def test_what_a_loss_remembers_comes_back(tmp_path: Path) -> None:
    parts, loss, fresh = trained(0), nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2, affine=False)
    loss(torch.randn(4, 2))
    save_state(tmp_path, Progress(step=1), *parts, loss=loss)
    saved = read_state(tmp_path, silent)
    assert saved is not None
    restore(saved, *trained(1, steps=0), fresh)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in loss.state_dict().items())


def test_a_state_of_another_loss_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, Progress(step=1), *trained(0), loss=nn.BatchNorm1d(2, affine=False))
    saved = read_state(tmp_path, silent)
    assert saved is not None
    with pytest.raises(RunError, match="does not fit"):
        restore(saved, *trained(1, steps=0), nn.BatchNorm1d(3, affine=False))
