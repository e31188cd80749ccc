"""The result of one `ddpm explore` mode: a table and a sheet of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["ExploreResult", "cells_by_row"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ExploreResult:
    """cells: the pictures of the sheet, uint8 [rows * columns, H, W, C], row by row.

    chosen: the step count or reverse time of each column. feature_dim: of the extractor, 0 without one.
    """

    table: pa.Table
    cells: Pixels
    columns: int
    chosen: tuple[int, ...] = ()
    feature_dim: int = 0


def cells_by_row(columns: Sequence[Pixels]) -> Pixels:
    """Columns of images [rows, H, W, C] -> [rows * columns, H, W, C], row by row."""
    cells = np.stack(columns, axis=1)
    return cells.reshape(-1, *cells.shape[2:])
