"""Forecast of time, storage and cost of `ddpm generate` from a few measured batches. Pure arithmetic."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.progress import duration


@dataclass(frozen=True)
class Forecast:
    """images: not made yet. images_per_second: of one actor. bytes_per_image: of a PNG. price: per actor-hour."""

    images: int
    images_per_second: float
    bytes_per_image: float
    actors: int
    price: float | None = None

    @property
    def seconds(self) -> float:
        """Assumes that every actor is as fast as the measured one."""
        return self.images / max(self.images_per_second * self.actors, 1e-9)

    @property
    def bytes(self) -> int:
        """Images only; the other columns add a few hundred bytes per row before compression."""
        return round(self.images * self.bytes_per_image)

    @property
    def cost(self) -> float | None:
        return None if self.price is None else self.seconds / 3600.0 * self.actors * self.price

    def figures(self) -> dict[str, Any]:
        """JSON fields of the forecast."""
        return {**asdict(self), "seconds": round(self.seconds, 1), "bytes": self.bytes, "cost": self.cost}

    def __str__(self) -> str:
        parts = [
            f"forecast: {self.images:,} images at {self.images_per_second:,.1f} img/s an actor",
            f"{self.actors} actors: {duration(self.seconds)}",
            f"about {_size(self.bytes)}",
        ]
        if self.cost is not None:
            parts.append(f"cost {self.cost:,.2f}")
        return ", ".join(parts)


def progress_note(failed: int, speeds: Mapping[str, float]) -> str:
    """Suffix of the progress line: failed samples, and the slowest of several actors. speeds: img/s by actor."""
    parts = [f"{failed:,} failed"] if failed else []
    if len(speeds) > 1:
        actor, speed = min(speeds.items(), key=lambda item: item[1])
        parts.append(f"slowest actor {speed:,.1f} img/s ({actor})")
    return ", ".join(parts)


def _size(count: int) -> str:
    """Human-readable size: '812 kB', '3.4 GB'."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"
