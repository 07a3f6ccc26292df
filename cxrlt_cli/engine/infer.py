"""Images to logits, over all processes, each image exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cxrlt_cli.contracts import View
from cxrlt_cli.data.batches import Images, batches, to_unit
from cxrlt_cli.engine.distributed import World, gather_rows, my_rows
from cxrlt_cli.events import Advanced, Emit, Finished, Started, silent

Precision = Literal["fp32", "bf16", "fp16"]

IDENTITY = View("identity", lambda images: images)


@dataclass(frozen=True, slots=True)
class Setting:
    """How the network is run.

    Attributes:
        device: where.
        size: side of the images the network sees, in pixels.
        batch_size: images a forward pass, per process; views of an image count as images.
        precision: autocast type.
        stage: name of the stage in progress events.
    """

    device: torch.device
    size: int
    batch_size: int
    precision: Precision = "fp32"
    stage: str = "predict"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The autocast context of a precision; nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def infer(
    model: nn.Module,
    images: Images,
    rows: npt.NDArray[np.int64],
    setting: Setting,
    *,
    views: Sequence[View] = (IDENTITY,),
    world: World | None = None,
    emit: Emit = silent,
) -> npt.NDArray[np.float32]:
    """Logits of images, view by view.

    Images are read, and turned into intensities, once for all views. Where a batch has fewer images than
    ``batch_size``, several views run as one batch.

    Args:
        model: (B, 1, S, S) intensities to logits (B, C); put in evaluation mode here and back afterwards.
        images: read from.
        rows: (N,) which images, in the order of the result.
        setting: device, size, batch size and precision.
        views: V test-time views.
        world: the processes that share the work.
        emit: told about progress by the first process.

    Returns:
        (V, N, C) float32, on every process.
    """
    world = world or World()
    mine = rows[my_rows(len(rows), world)]
    say = emit if world.first else silent
    chunks = [mine[start : start + setting.batch_size] for start in range(0, len(mine), setting.batch_size)]
    parts: list[Tensor] = []
    done = 0
    say(Started(setting.stage, len(rows)))
    with evaluating(model), closing(batches(images, chunks, pin=setting.device.type == "cuda")) as stream:
        for batch in stream:
            parts.append(_forward(model, to_unit(batch, setting.device, setting.size), views, setting))
            done += len(batch)
            say(Advanced(setting.stage, min(len(rows), done * world.size)))
        local = _join(parts, len(views), model, setting)
    say(Finished(setting.stage))
    return gather_rows(local, len(rows), world)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which the network is in evaluation mode and nothing is recorded for gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _forward(model: nn.Module, images: Tensor, views: Sequence[View], setting: Setting) -> Tensor:
    """(n, 1, S, S) -> (V, n, C) float32. As many views a pass as fit into a batch, so that memory does not grow."""
    together = max(1, setting.batch_size // len(images))
    outputs: list[Tensor] = []
    for start in range(0, len(views), together):
        seen = [view.apply(images) for view in views[start : start + together]]
        with autocast(setting.precision, setting.device):
            outputs += model(torch.cat(seen) if len(seen) > 1 else seen[0]).float().split(len(images))
    return torch.stack(outputs)


def _join(parts: list[Tensor], views: int, model: nn.Module, setting: Setting) -> npt.NDArray[np.float32]:
    """The logits of all batches on the host. They wait on the device until then: fetching one waits for its batch."""
    if not parts:
        # A process without rows (fewer images than processes) still has to know C.
        probe = torch.zeros(1, 1, setting.size, setting.size, device=setting.device)
        parts = [model(probe).float().expand(views, 1, -1)[:, :0]]
    joined: npt.NDArray[np.float32] = torch.cat(parts, dim=1).cpu().numpy()
    return joined
