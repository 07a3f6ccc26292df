"""Running the network of a run over images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cxrlt_cli.commands.opening import OpenRun
from cxrlt_cli.errors import PluginError, TrainingError
from cxrlt_cli.events import Emit
from cxrlt_cli.wording import count

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
        PluginError: a view does not work on images of this size, or on this device.
        TrainingError: memory is exhausted.
    """
    import torch

    from cxrlt_cli.engine.infer import infer
    from cxrlt_cli.model import load_model

    with _explained(run, setting):
        try_views(views, setting)
        model: torch.nn.Module = load_model(run.dir.model, setting.device)[0]
        if run.recipe.train.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return infer(model, images, rows, setting, views=views, emit=emit)


def try_views(views: Sequence[View], setting: Setting) -> None:
    """Show each view one grey image, so that one that cannot work on this size or device says so before the work.

    Raises:
        PluginError: a view fails, or changes the shape.
    """
    import torch

    size, image = setting.size, torch.full((1, 1, setting.size, setting.size), 0.5, device=setting.device)
    for view in views:
        try:
            shape = tuple(view.apply(image).shape)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a plugin may raise anything
            what = f"fails with images of {size} x {size} px on {setting.device}: {type(error).__name__}: {error}"
            raise _bad_view(view, what) from error
        if shape != tuple(image.shape):
            raise _bad_view(view, f"makes {shape} of {tuple(image.shape)}")


def _bad_view(view: View, what: str) -> PluginError:
    return PluginError(
        f"the view {view.name!r} of the test-time augmentation {what}", cure="Name another one with --tta."
    )


def check_finite(run: OpenRun, image_id: Sequence[str], logits: npt.NDArray[np.float32]) -> None:
    """Refuse logits (N, C) that are no numbers.

    Raises:
        TrainingError: there are some.
    """
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        named = ", ".join(image_id[row] for row in bad[:5])
        raise TrainingError(
            f"the network's outputs for {count(len(bad), 'image')} are not finite: {named}",
            where=str(run.dir.path),
            cure="Weights or half precision may be at fault: try `--device cpu`, which computes in full precision.",
        )


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
