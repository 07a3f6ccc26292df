"""The journal of packing: one record a packed image, appended after the image, so that killed work can be continued."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

#: What is known of a packed image: one entry of the journal.
RECORD = np.dtype(
    [
        ("index", "<i8"),  # row of the source table
        ("file_size", "<i8"),  # bytes; 0 for drawn images
        ("crc32", "<u4"),  # of the packed pixels
        ("width", "<i4"),
        ("height", "<i4"),
        ("bits", "<i4"),
        ("sha256", "u1", (32,)),  # of the file; zeros for drawn images
        ("pixel_sha256", "u1", (32,)),  # of the original grey values
        ("check", "<u4"),  # CRC-32 of the fields above
    ]
)


def append_journal(file: BinaryIO, records: npt.NDArray[np.void]) -> None:
    """Append ``records`` (of dtype ``RECORD``) with their check values, and hand them to the operating system."""
    sealed = records.copy()
    sealed["check"] = _checks(sealed)
    file.write(sealed.tobytes())
    file.flush()


def read_journal(path: Path) -> npt.NDArray[np.void]:
    """The whole records of a journal, up to the first torn or damaged one; an absent file has none.

    The file is cut there, so that new records follow whole ones.
    """
    if not path.exists():
        return np.zeros(0, RECORD)
    data = path.read_bytes()
    records = np.frombuffer(data, RECORD, len(data) // RECORD.itemsize)
    bad = np.flatnonzero(records["check"] != _checks(records))
    good = int(bad[0]) if len(bad) else len(records)
    if good * RECORD.itemsize < len(data):
        os.truncate(path, good * RECORD.itemsize)
    return records[:good].copy()


def _checks(records: npt.NDArray[np.void]) -> npt.NDArray[np.uint32]:
    body = RECORD.itemsize - RECORD["check"].itemsize
    data = memoryview(records.tobytes())
    step = RECORD.itemsize
    return np.array([zlib.crc32(data[i * step : i * step + body]) for i in range(len(records))], np.uint32)
