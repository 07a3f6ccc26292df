"""Running the network of a run over images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cxrlt_cli.commands.opening import OpenRun
from cxrlt_cli.errors import TrainingError
from cxrlt_cli.events import Emit

if TYPE_CHECKING:
    from cxrlt_cli.contracts import View
    from cxrlt_cli.data.batches import Images
    from cxrlt_cli.engine.infer import Setting

#: Words by which PyTorch and CUDA's libraries report exhausted memory in a plain RuntimeError.
_EXHAUSTED = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def setting_of(run: OpenRun, device: str, batch_size: int | None) -> Setting:
    """As in training; in full precision on a CPU, where half precision is slower and only loses digits.

    Args:
        run: the run.
        device: "auto", "cpu", "cuda" or "cuda:K".
        batch_size: images a forward pass; None: as in the recipe.
    """
    from cxrlt_cli.engine.distributed import pick_device
    from cxrlt_cli.engine.infer import Setting

    train, chosen = run.recipe.train, pick_device(device)
    size = batch_size or train.eval_batch_size or train.batch_size
    return Setting(chosen, run.card.image_size, size, train.precision if chosen.type == "cuda" else "fp32")


def view_logits(
    run: OpenRun, images: Images, rows: npt.NDArray[np.int64], setting: Setting, *, views: Sequence[View], emit: Emit
) -> npt.NDArray[np.float32]:
    """Logits (V, N, C) of V views of the images at ``rows`` (N,).

    Raises:
        TrainingError: memory is exhausted.
    """
    import torch

    from cxrlt_cli.engine.infer import infer
    from cxrlt_cli.model import load_model

    with _explained(run, setting):
        model: torch.nn.Module = load_model(run.dir.model, setting.device)[0]
        if run.recipe.train.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return infer(model, images, rows, setting, views=views, emit=emit)


@contextmanager
def _explained(run: OpenRun, setting: Setting) -> Iterator[None]:
    """Turn exhausted memory into an error with a cure."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(run, setting) from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _EXHAUSTED):
            raise
        raise _out_of_memory(run, setting) from error


def _out_of_memory(run: OpenRun, setting: Setting) -> TrainingError:
    less = f"--batch-size {max(1, setting.batch_size // 4)}" if setting.batch_size > 1 else "--device cpu"
    return TrainingError(
        f"out of memory on {setting.device} with a batch of {setting.batch_size} images of {setting.size} px",
        where=str(run.dir.path),
        cure=f"Try `{less}`; the predictions do not depend on --batch-size. Nothing was written.",
    )
