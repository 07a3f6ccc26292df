"""The run directory: where everything lies, and how it is written so that nothing is ever half there.

Files are written beside their target, flushed to disk and renamed. Reading needs numpy, safetensors and pyarrow at
most; torch is never imported here, so that evaluation works without it.
"""

from cxrlt_cli.artifacts.card import ModelCard, read_card
from cxrlt_cli.artifacts.files import (
    flush,
    read_json,
    read_lines,
    replacing,
    writable_directory,
    write_json,
    write_lines,
    write_text,
)
from cxrlt_cli.artifacts.predictions import LOGIT, Predictions, read_predictions, write_predictions
from cxrlt_cli.artifacts.run import FORMAT, RunDir, find_run, list_runs

__all__ = [
    "FORMAT",
    "LOGIT",
    "ModelCard",
    "Predictions",
    "RunDir",
    "find_run",
    "flush",
    "list_runs",
    "read_card",
    "read_json",
    "read_lines",
    "read_predictions",
    "replacing",
    "writable_directory",
    "write_json",
    "write_lines",
    "write_predictions",
    "write_text",
]
