"""Fingerprint of an evaluation protocol: scores of different protocols are different quantities."""

from dataclasses import dataclass, fields

from pipeline.errors import DataError


@dataclass(frozen=True)
class Fingerprint:
    """Fields that must be equal for two sets of features to be merged or compared.

    `reference` names the real images of the comparison (dataset digest and split); real and generated images of one
    comparison have the same `reference`.
    """

    extractor: str
    weights_sha256: str
    preprocessing: str
    feature_dim: int
    reference: str

    @property
    def frechet_name(self) -> str:
        """Name of a Frechet distance on these features: FID for Inception-v3, else FD-<extractor>."""
        return "FID" if self.extractor == "inception-v3" else f"FD-{self.extractor}"

    @property
    def kernel_name(self) -> str:
        """Name of a kernel distance on these features: KID for Inception-v3, else KD-<extractor>."""
        return "KID" if self.extractor == "inception-v3" else f"KD-{self.extractor}"

    @property
    def class_name(self) -> str:
        """Name of a score of class probabilities: IS for Inception-v3, else class-score-<extractor>."""
        return "IS" if self.extractor == "inception-v3" else f"class-score-{self.extractor}"

    def require_same(self, other: "Fingerprint") -> None:
        """Raises DataError that names every differing field with both values."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        differing = [f"{name}: {mine!r} and {theirs!r}" for name, mine, theirs in pairs if mine != theirs]
        if differing:
            raise DataError(f"features of different protocols cannot be compared: {'; '.join(differing)}")
