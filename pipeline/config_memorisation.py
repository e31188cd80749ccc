"""Settings of the search for training images among samples."""

from pydantic import Field

from pipeline.section import Section

__all__ = ["MemorisationConfig"]


class MemorisationConfig(Section):
    """How many samples are looked up in the training split, and what counts as a near-copy."""

    num_samples: int | None = Field(
        10_000, ge=1, description="samples looked up, in order of id; 'null' in a file: all. Memory grows with it"
    )
    neighbours: int = Field(50, ge=2, le=1000, description="nearest training images that make a neighbourhood")
    closeness: float = Field(
        0.5, gt=0, lt=1, description="near-copy: relative distance up to this share of the held-out median"
    )
    flips: bool | None = Field(None, description="mirrored training images as well; unset: as train.flip")
    pairs: int = Field(32, ge=1, le=500, description="closest pairs on each sheet")
