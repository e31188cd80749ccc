"""The k nearest rows of every query, exactly, in bounded memory: rows come in blocks, and only the k best are kept.

Squared Euclidean distances of a block are |x|^2 + |y|^2 - 2 x.y, whose matrix product loses digits where x and y are
close. Neither kind of vector suffers from that here:

    pixels    levels minus 128 are integers up to 128, so float32 holds every partial sum of 1024 products (at most
              2^24) exactly; chunks of that many are added in float64, which is exact up to 2^53.
    features  the rounding of a chunk of n products is at most n u / (1 - n u) |x| |y| (Higham 2002, section 3.1;
              u = 2^-24). Every row that may be among the k best within that bound is measured again as
              sum (x - y)^2 in float64.

So the result is a function of queries and rows alone: the same bits for any blocks, in any order. Equal distances go
by id, and a row that comes twice under one id counts once, at its smaller distance.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["NO_ROW", "Nearest", "add_rows"]

NO_ROW: Final = np.iinfo(np.int64).max
"""Id of a neighbour that is not there, at distance inf."""

_CHUNK: Final = 1024
_QUERY_BLOCK: Final = 1024
_ROW_BLOCK: Final = 2048
_PAIR_BYTES: Final = 2**24
_UNIT: Final = 2.0**-24
_GAMMA: Final = _CHUNK * _UNIT / (1 - _CHUNK * _UNIT)
_SLACK: Final = 2.0**-44
"""Of |x|^2 + |y|^2: covers the float64 roundings of norms and of sums over up to a thousand chunks."""

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Vectors = NDArray[np.uint8] | NDArray[np.float32]
Block = tuple[NDArray[np.int64], NDArray[np.int64], Float64]


@dataclass(frozen=True, eq=False)
class Nearest:
    """squared: float64 [Q, k] squared distances, ascending; ids: int64 [Q, k] of their rows, ascending where equal."""

    squared: Float64
    ids: Int64

    @classmethod
    def none(cls, queries: int, k: int) -> "Nearest":
        """No row seen yet."""
        return cls(np.full((queries, k), np.inf), np.full((queries, k), NO_ROW, np.int64))

    def merge(self, other: "Nearest") -> "Nearest":
        """The k best of both, for the same queries: commutative, associative, idempotent."""
        return _best(np.hstack([self.squared, other.squared]), np.hstack([self.ids, other.ids]), self.squared.shape[1])


def _best(squared: Float64, ids: Int64, k: int) -> Nearest:
    """The k first of [Q, m] candidates by (distance, id), each id once."""
    order = np.lexsort((squared, ids), axis=1)
    squared, ids = np.take_along_axis(squared, order, 1), np.take_along_axis(ids, order, 1)
    again = ids[:, 1:] == ids[:, :-1]
    squared[:, 1:][again], ids[:, 1:][again] = np.inf, NO_ROW
    order = np.lexsort((ids, squared), axis=1)[:, :k]
    return Nearest(np.take_along_axis(squared, order, 1), np.take_along_axis(ids, order, 1))


def add_rows(kept: Nearest, queries: Vectors, rows: Vectors, ids: Int64) -> Nearest:
    """`kept` with the rows [R, D] of `ids` [R] seen as well; queries [Q, D].

    Both uint8 (pixel levels) or both float32 (finite features). Works through blocks of both, so that memory beyond
    the arguments and the result does not depend on Q and R. Raises ValueError on anything else.
    """
    if queries.dtype != rows.dtype or queries.dtype not in (np.uint8, np.float32):
        raise ValueError(f"need uint8 and uint8 or float32 and float32, got {queries.dtype} and {rows.dtype}")
    if queries.ndim != 2 or queries.shape[1:] != rows.shape[1:] or len(rows) != len(ids):
        raise ValueError(f"queries {queries.shape}, rows {rows.shape} and {len(ids)} ids do not fit together")
    squared, found = kept.squared.copy(), kept.ids.copy()
    for start in range(0, len(queries), _QUERY_BLOCK):
        here = slice(start, start + _QUERY_BLOCK)
        best = Nearest(squared[here], found[here])
        for first in range(0, len(rows), _ROW_BLOCK):
            there = slice(first, first + _ROW_BLOCK)
            best = _with_block(best, queries[here], rows[there], ids[there])
        squared[here], found[here] = best.squared, best.ids
    return Nearest(squared, found)


def _with_block(best: Nearest, queries: Vectors, rows: Vectors, ids: Int64) -> Nearest:
    of, to, squared = _candidates(best.squared, queries, rows)
    if len(of) == 0:
        return best
    counts = np.bincount(of, minlength=len(queries))
    places = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    wide = Nearest.none(len(queries), int(counts.max()))
    wide.squared[of, places], wide.ids[of, places] = squared, ids[to]
    return best.merge(wide)


def _candidates(best: Float64, queries: Vectors, rows: Vectors) -> Block:
    """Pairs (query, row, exact squared distance), by query: among them all that belong to the k best."""
    near, error = _products(queries, rows)
    k, limit = best.shape[1], best[:, -1]
    if len(rows) >= k and np.isinf(limit).any():
        limit = np.minimum(limit, np.partition(near, k - 1, axis=1)[:, k - 1] + error)
    of, to = np.nonzero(near <= (limit + error)[:, None])
    if queries.dtype == np.uint8:
        return of, to, near[of, to]
    exact = [_exact(queries[of[part]], rows[to[part]]) for part in _pieces(len(of), queries.shape[1])]
    return of, to, np.concatenate([np.empty(0), *exact])


def _products(queries: Vectors, rows: Vectors) -> tuple[Float64, Float64]:
    """Squared distances float64 [Q, R] from matrix products, and the largest error in each line, float64 [Q]."""
    x, y = _numbers(queries), _numbers(rows)
    parts = [slice(first, first + _CHUNK) for first in range(0, x.shape[1], _CHUNK)]
    x_norms, y_norms = (sum(np.square(v[:, p], dtype=np.float64).sum(axis=1) for p in parts) for v in (x, y))
    near: Float64 = np.add.outer(x_norms, y_norms)
    for part in parts:
        product = x[:, part] @ y[:, part].T
        near -= np.multiply(product, 2, out=product)
    if queries.dtype == np.uint8:
        return near, np.zeros(len(x))
    largest = y_norms.max(initial=0.0)
    return near, 2 * _GAMMA * np.sqrt(x_norms * largest) + _SLACK * (x_norms + largest)


def _numbers(vectors: Vectors) -> NDArray[np.float32]:
    """float32 [N, D]; of pixels the levels around 0, which distances do not change by."""
    numbers: NDArray[np.float32] = vectors.astype(np.float32, copy=False)
    return numbers - np.float32(128) if vectors.dtype == np.uint8 else numbers


def _exact(x: NDArray[Any], y: NDArray[Any]) -> Float64:
    """float64 [P] squared distances of pairs [P, D]; a pair's bits do not depend on the other pairs."""
    total: Float64 = np.square(x.astype(np.float64) - y).sum(axis=1)
    return total


def _pieces(pairs: int, width: int) -> Iterator[slice]:
    step = max(1, _PAIR_BYTES // (8 * max(width, 1)))
    return (slice(first, first + step) for first in range(0, pairs, step))
