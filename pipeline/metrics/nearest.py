"""Exact search for the k nearest rows of every query, in bounded memory: rows arrive in blocks, k candidates are kept.

Squared Euclidean distances of a block are |x|^2 + |y|^2 - 2 x.y, whose matrix product loses digits where x and y are
close. Results are exact nevertheless:

    pixels    levels minus 128 are integers up to 128, so float32 holds every partial sum of 1024 products (at most
              2^24) exactly; chunks of that many are added in float64, which is exact up to 2^53.
    features  the rounding of a chunk of n products is at most n u / (1 - n u) |x| |y| (Higham 2002, section 3.1;
              u = 2^-24). For every row that may be among the k nearest within that bound, the distance is computed
              again as sum (x - y)^2 in float64.

So the result depends on queries and rows alone: the same bits for any blocks in any order. Ties are broken by id, and
an id that arrives twice counts once, at the smaller distance.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_ROW: Final = np.iinfo(np.int64).max
"""Id of a missing neighbour; its distance is inf."""

_CHUNK: Final = 1024
_QUERY_BLOCK: Final = 1024
_ROW_BLOCK: Final = 2048
_PAIR_BYTES: Final = 2**24
_UNIT: Final = 2.0**-24
_GAMMA: Final = _CHUNK * _UNIT / (1 - _CHUNK * _UNIT)
_SLACK: Final = 2.0**-44
"""Relative to |x|^2 + |y|^2: covers float64 rounding of norms and of sums over up to a thousand chunks."""

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Vectors = NDArray[np.uint8] | NDArray[np.float32]


class _Pairs(NamedTuple):
    """Candidate pairs [P], ordered by query: query index, row index, exact squared distance."""

    query: Int64
    row: Int64
    squared: Float64


@dataclass(frozen=True, eq=False)
class Nearest:
    """The k nearest rows of Q queries: squared distances float64 [Q, k], ascending; ids int64 [Q, k], ties by id."""

    squared: Float64
    ids: Int64

    @classmethod
    def none(cls, queries: int, k: int) -> "Nearest":
        """The state before any row."""
        return cls(np.full((queries, k), np.inf), np.full((queries, k), NO_ROW, np.int64))

    def merge(self, other: "Nearest") -> "Nearest":
        """The k nearest of both, for the same queries: commutative, associative, idempotent."""
        return _best(np.hstack([self.squared, other.squared]), np.hstack([self.ids, other.ids]), self.squared.shape[1])


def _best(squared: Float64, ids: Int64, k: int) -> Nearest:
    """The first k of [Q, m] candidates by (distance, id), each id once."""
    order = np.lexsort((squared, ids), axis=1)
    squared, ids = np.take_along_axis(squared, order, 1), np.take_along_axis(ids, order, 1)
    again = ids[:, 1:] == ids[:, :-1]
    squared[:, 1:][again], ids[:, 1:][again] = np.inf, NO_ROW
    order = np.lexsort((ids, squared), axis=1)[:, :k]
    return Nearest(np.take_along_axis(squared, order, 1), np.take_along_axis(ids, order, 1))


def add_rows(kept: Nearest, queries: Vectors, rows: Vectors, ids: Int64) -> Nearest:
    """`kept`, updated with the rows [R, D] of `ids` [R]; queries [Q, D].

    Queries and rows are both uint8 (pixel levels) or both float32 (finite features). The work is done in blocks, so
    memory beyond arguments and result does not depend on Q and R. Raises ValueError on other types or shapes.
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
    pairs = _candidates(best.squared, queries, rows)
    if len(pairs.query) == 0:
        return best
    counts = np.bincount(pairs.query, minlength=len(queries))
    places = np.arange(len(pairs.query)) - np.repeat(np.cumsum(counts) - counts, counts)
    wide = Nearest.none(len(queries), int(counts.max()))
    wide.squared[pairs.query, places], wide.ids[pairs.query, places] = pairs.squared, ids[pairs.row]
    return best.merge(wide)


def _candidates(best: Float64, queries: Vectors, rows: Vectors) -> _Pairs:
    """Pairs that include every row among the k nearest of its query; `best` float64 [Q, k] are distances so far."""
    near, error = _products(queries, rows)
    k, limit = best.shape[1], best[:, -1]
    if len(rows) >= k and np.isinf(limit).any():
        limit = np.minimum(limit, np.partition(near, k - 1, axis=1)[:, k - 1] + error)
    query, row = np.nonzero(near <= (limit + error)[:, None])
    if queries.dtype == np.uint8:
        return _Pairs(query, row, near[query, row])
    exact = [_exact(queries[query[part]], rows[row[part]]) for part in _pieces(len(query), queries.shape[1])]
    return _Pairs(query, row, np.concatenate([np.empty(0), *exact]))


def _products(queries: Vectors, rows: Vectors) -> tuple[Float64, Float64]:
    """Squared distances float64 [Q, R] from matrix products, and an error bound for each query, float64 [Q]."""
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
    """float32 [N, D]; pixel levels are shifted by -128, which leaves distances unchanged."""
    numbers: NDArray[np.float32] = vectors.astype(np.float32, copy=False)
    return numbers - np.float32(128) if vectors.dtype == np.uint8 else numbers


def _exact(x: NDArray[Any], y: NDArray[Any]) -> Float64:
    """float64 [P] squared distances of pairs [P, D]; the bits of a pair do not depend on other pairs."""
    total: Float64 = np.square(x.astype(np.float64) - y).sum(axis=1)
    return total


def _pieces(pairs: int, width: int) -> Iterator[slice]:
    step = max(1, _PAIR_BYTES // (8 * max(width, 1)))
    return (slice(first, first + step) for first in range(0, pairs, step))
