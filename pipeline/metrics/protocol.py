"""Under which protocol features were made. Scores of different protocols are different quantities."""

from dataclasses import dataclass, fields

from pipeline.errors import DataError

__all__ = ["Fingerprint"]


@dataclass(frozen=True)
class Fingerprint:
    """Everything that must be equal before two sets of features may be merged or compared.

    `reference` names the real images that the protocol measures against (dataset digest and split): it is
    the same for the real and for the generated side of a comparison.
    """

    extractor: str
    weights_sha256: str
    preprocessing: str
    feature_dim: int
    reference: str

    @property
    def frechet_name(self) -> str:
        """How a Frechet distance on these features is called; only Inception-v3 gives an FID."""
        return "FID" if self.extractor == "inception-v3" else f"FD-{self.extractor}"

    @property
    def kernel_name(self) -> str:
        """How a kernel distance on these features is called."""
        return "KID" if self.extractor == "inception-v3" else f"KD-{self.extractor}"

    @property
    def class_name(self) -> str:
        """How a score of class probabilities is called."""
        return "IS" if self.extractor == "inception-v3" else f"class-score-{self.extractor}"

    def require_same(self, other: "Fingerprint") -> None:
        """Raises DataError that names every differing field with both values."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        differing = [f"{name}: {mine!r} and {theirs!r}" for name, mine, theirs in pairs if mine != theirs]
        if differing:
            raise DataError(f"features of different protocols cannot be compared: {'; '.join(differing)}")
