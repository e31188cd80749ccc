"""Distance in training order between neighbours in storage, against a uniform shuffle of the whole dataset.

    python benchmarks/shuffle.py [--epochs 20] [--quick] [--json] [--check] [--save]

Computed on training's own plans (pipeline.training.data_plan.TrainPlan) without reading data. Distances are
between the positions of a pair of images in an epoch, in steps (global batches) and in images, for three kinds of
pairs:

    adjacent     rows that are neighbours in storage
    shard-mates  two rows of one shard, drawn anew each epoch
    any          two rows of the dataset, drawn anew each epoch

docs/feeding.md explains the numbers.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outcome import flags, tell

from pipeline.training.data_plan import TrainPlan, keyed_permutation

IMAGES = (60_000, 1_000_000)
SHARD_ROWS, LANES, MICRO_BATCH = 1024, 8, 16
BATCH = LANES * MICRO_BATCH

Int64 = NDArray[np.int64]
Pairs = tuple[Int64, Int64]


class Spread(NamedTuple):
    """Statistics of the distances of many pairs."""

    low: float  # 5th percentile, steps
    median: float  # steps
    high: float  # 95th percentile, steps
    images: float  # median, images
    together: float  # share of pairs in the same global batch, 0..1


def plan_of(images: int, shard_rows: int = SHARD_ROWS, lanes: int = LANES, micro_batch: int = MICRO_BATCH) -> TrainPlan:
    """The plan of a dataset as ingest writes it: full shards, and one shard with the rest."""
    full, rest = divmod(images, shard_rows)
    return TrainPlan(f"{images} images", (shard_rows,) * full + (rest,) * (rest > 0), lanes, micro_batch, 0)


def places(plan: TrainPlan, epoch: int) -> Int64:
    """Position of each row, in storage order, in the epoch's sequence of images; -1 for a row that is left out.

    Image number `slot` of lane j in global batch k stands at (k * lanes + j) * micro_batch + slot.
    """
    first = np.cumsum([0, *plan.shard_rows])
    found = np.full(first[-1], -1, dtype=np.int64)
    slots = np.arange(plan.micro_batch)
    for lane, units in enumerate(plan.epoch(epoch).lanes):
        for unit in units:
            batches = unit.first_batch + np.arange(unit.skip, unit.take)
            at = (batches[:, None] * plan.lanes + lane) * plan.micro_batch + slots
            found[first[unit.shard] + plan.rows(unit)] = at.reshape(-1)
    return found


def adjacent(plan: TrainPlan) -> Pairs:
    """Rows i and i + 1, shard borders included."""
    rows = np.arange(sum(plan.shard_rows))
    return rows[:-1], rows[1:]


def mates(plan: TrainPlan, epoch: int) -> Pairs:
    """Every row of a shard with one partner of the same shard (of an odd number of rows one has none)."""
    first = np.cumsum([0, *plan.shard_rows])
    orders = [first[s] + keyed_permutation(n, "mates", epoch, s) for s, n in enumerate(plan.shard_rows)]
    even = [order[: len(order) // 2 * 2] for order in orders]
    return np.concatenate([o[::2] for o in even]), np.concatenate([o[1::2] for o in even])


def any_two(plan: TrainPlan, epoch: int) -> Pairs:
    """Every row of the dataset with one partner."""
    order = keyed_permutation(sum(plan.shard_rows), "any", epoch)[: sum(plan.shard_rows) // 2 * 2]
    return order[::2], order[1::2]


def spread(place: Int64, pairs: Pairs, batch: int) -> Spread:
    """Statistics of the pairs with both images in the epoch."""
    a, b = (place[rows] for rows in pairs)
    there = (a >= 0) & (b >= 0)
    a, b = a[there], b[there]
    steps = np.abs(a // batch - b // batch)
    low, median, high = np.percentile(steps, [5, 50, 95])
    return Spread(low, median, high, float(np.median(np.abs(a - b))), float((steps == 0).mean()))


def mean_spread(spreads: list[Spread]) -> Spread:
    return Spread(*np.mean(spreads, axis=0).tolist())


class Epochs(NamedTuple):
    """Differences between epochs; shares are of the images."""

    left_out: float  # in an epoch, mean
    unseen: tuple[float, ...]  # in none of the first 1, 2, ... epochs
    correlation: float  # largest |rank correlation| of the places in two epochs that follow each other
    together_again: float  # of the pairs together in a batch of one epoch, share together in one of the next


def epochs_of(found: list[Int64], batch: int) -> Epochs:
    """Differences between two or more consecutive epochs, from their positions."""
    seen = np.zeros(len(found[0]), dtype=bool)
    unseen = []
    for place in found:
        seen |= place >= 0
        unseen.append(float(1 - seen.mean()))
    follows = list(pairwise(found))
    return Epochs(
        left_out=float(np.mean([(place < 0).mean() for place in found])),
        unseen=tuple(unseen),
        correlation=max(abs(_correlation(a, b)) for a, b in follows),
        together_again=float(np.mean([_together_again(a, b, batch) for a, b in follows])),
    )


def _correlation(a: Int64, b: Int64) -> float:
    both = (a >= 0) & (b >= 0)
    return float(np.corrcoef(a[both], b[both])[0, 1])


def _together_again(a: Int64, b: Int64, batch: int) -> float:
    """Pairs in one batch of `a` that are in one batch of `b` / pairs in one batch of `a`, of rows in both."""
    both = (a >= 0) & (b >= 0)
    first, second = a[both] // batch, b[both] // batch
    cells = np.unique(first * (second.max() + 1) + second, return_counts=True)[1]
    return float(_num_pairs(cells) / _num_pairs(np.unique(first, return_counts=True)[1]))


def _num_pairs(sizes: Int64) -> float:
    return float((sizes * (sizes - 1) / 2).sum())


def uniform(images: int, epoch: int) -> Int64:
    """Positions under a shuffle of the whole dataset in each epoch."""
    return keyed_permutation(images, "uniform", epoch)


class Measured(NamedTuple):
    images: int
    shards: int
    spreads: dict[str, Spread]  # by kind of pairs; `uniform` are neighbours under a uniform shuffle
    ours: Epochs
    uniform: Epochs

    @property
    def chance(self) -> float:
        """Standard error of the correlation of two independent orders of the shards."""
        return float(self.shards**-0.5)


def measure(images: int, epochs: int) -> Measured:
    """Spreads are means over the epochs."""
    plan = plan_of(images)
    found = [places(plan, epoch) for epoch in range(epochs)]
    ideal = [uniform(images, epoch) for epoch in range(epochs)]
    spreads = {
        "adjacent": mean_spread([spread(p, adjacent(plan), BATCH) for p in found]),
        "shard-mates": mean_spread([spread(p, mates(plan, e), BATCH) for e, p in enumerate(found)]),
        "any": mean_spread([spread(p, any_two(plan, e), BATCH) for e, p in enumerate(found)]),
        "uniform": mean_spread([spread(p, adjacent(plan), BATCH) for p in ideal]),
    }
    return Measured(images, len(plan.shard_rows), spreads, epochs_of(found, BATCH), epochs_of(ideal, BATCH))


def show(m: Measured, epochs: int) -> None:
    print(f"\n{m.images:,} images, shards of {SHARD_ROWS:,}, {LANES} lanes x {MICRO_BATCH}: mean of {epochs} epochs")
    print(f"{'':12}{'5 %':>9}{'median':>9}{'95 %':>9}{'median':>12}{'same':>10}")
    print(f"{'pairs':12}{'steps':>9}{'steps':>9}{'steps':>9}{'images':>12}{'batch':>10}")
    for name, s in m.spreads.items():
        print(f"{name:12}{s.low:9.1f}{s.median:9.1f}{s.high:9.1f}{s.images:12,.0f}{s.together:10.3%}")
    unseen = ", ".join(f"{share:.2%}" for share in m.ours.unseen[:4])
    print(f"left out of an epoch {m.ours.left_out:.2%}; in none of the first 1, 2, 3, 4 epochs {unseen}")
    print(f"rank correlation of epochs at most {m.ours.correlation:.3f} (one standard error by chance {m.chance:.3f})")
    again = f"{m.ours.together_again:.3%}; uniform {m.uniform.together_again:.3%}"
    print(f"pairs of a batch together again in the next epoch {again}")


def result_of(m: Measured) -> dict[str, dict[str, object]]:
    """Figures and bars; the bars test the plan, not the machine."""
    near, mated = m.spreads["adjacent"], m.spreads["shard-mates"]
    at_least = {"adjacent_median_steps": (near.median, 15.0), "mates_median_steps": (mated.median, 15.0)}
    at_most = {
        "mates_same_batch": (mated.together, 1.1 * (MICRO_BATCH - 1) / (SHARD_ROWS - 1)),
        "epoch_correlation": (m.ours.correlation, 3.5 * m.chance),
    }
    facts = {
        "uniform_median_steps": m.spreads["uniform"].median,
        "left_out": m.ours.left_out,
        "together_again": m.ours.together_again,
        "together_again_uniform": m.uniform.together_again,
    }
    rows = [(name, value, bar, value >= bar) for name, (value, bar) in at_least.items()]
    rows += [(name, value, bar, value <= bar) for name, (value, bar) in at_most.items()]
    made = {name: {"value": round(value, 5), "bar": round(bar, 5), "ok": ok} for name, value, bar, ok in rows}
    made |= {name: {"value": round(value, 5), "bar": None, "ok": True} for name, value in facts.items()}
    return {f"{name}_{m.images}": row for name, row in made.items()}


def main() -> int:
    parser = flags(__doc__, "shuffle", quick="4 epochs of one size")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    epochs = 4 if options.quick else max(2, options.epochs)
    result = {}
    for images in IMAGES[:1] if options.quick else IMAGES:
        m = measure(images, epochs)
        show(m, epochs)
        result |= result_of(m)
    return tell(options, "shuffle", result, told=(), epochs=epochs)


if __name__ == "__main__":
    sys.exit(main())
