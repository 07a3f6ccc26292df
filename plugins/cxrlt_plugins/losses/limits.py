"""Refusing an option that lies outside its range, in the same words for every loss."""

from __future__ import annotations

from cxrlt_cli.contracts import PluginFault


def require(holds: bool, loss: str, name: str, value: object, cure: str) -> None:
    """Raise a PluginFault naming the loss, the option and its value unless ``holds``."""
    if not holds:
        raise PluginFault(f"{name} is {value}", where=f"loss {loss}", cure=cure)
