"""Source `digits`: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI optdigits), scaled to 0..255."""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.ingest.sources.labels import Candidate, LabelChoice, SourceInfo
from pipeline.ingest.sources.source import Partition, SourceFile, SourceRow, chunk_rows

_INFO = SourceInfo("built-in digits", labels=LabelChoice(Candidate("arrays", "scikit-learn's targets", ())))
_FILE = SourceFile("digits", 0, "1")


@dataclass(frozen=True)
class DigitsSource:
    """`--source digits`: labelled images without a download."""

    partition_rows: int
    name: str = "digits"
    classes: tuple[str, ...] = tuple("0123456789")
    info: SourceInfo = _INFO

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        chunks = [] if _FILE.fingerprint in known else chunk_rows(len(_load().target), self.partition_rows)
        for chunk in chunks:
            yield Partition(f"digits[{chunk.start}:{chunk.stop}]", (_FILE,), chunk)

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        digits = _load()
        levels = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
        for row in partition.rows or ():
            yield SourceRow(f"digits#{row}", levels[row], str(digits.target[row]))


def _load() -> Any:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("--source digits needs scikit-learn: pip install 'ddpm-pipeline[digits]'") from error
    return load_digits()
