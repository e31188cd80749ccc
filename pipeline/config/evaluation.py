"""Settings of `evaluate`: on whose features, and what is measured besides."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Section

__all__ = ["EvaluateConfig", "MemorisationConfig"]


class EvaluateConfig(Section):
    """Scores of samples on the features of one named network, by default one trained on the real training split."""

    num_images: int | None = Field(
        None, ge=2, description="images a side; unset: as many as held-out and samples allow"
    )
    extractor: Literal["classifier", "efficientnet-lite0", "inception-v3"] = Field(
        "classifier", description="inception-v3 needs evaluate.weights and gives FID, KID and IS"
    )
    weights: str | None = Field(None, description="URI of the extractor's weights: safetensors or a PyTorch state dict")
    input_size: int | None = Field(
        None, ge=32, le=1024, description="efficientnet-lite0: side of its input; unset: 224"
    )
    classifier_epochs: int = Field(30, ge=1)
    classifier_width: int = Field(32, ge=4)
    extrapolate: bool = Field(False, description="also the Frechet distance at infinite n")
    bits_per_dim: int = Field(
        0, ge=0, description="held-out images whose likelihood bound is measured: T calls an image"
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _weights_are_of_a_network_that_comes_with_some(self) -> Self:
        if self.extractor == "inception-v3" and self.weights is None:
            raise ValueError(
                "evaluate.extractor inception-v3 needs evaluate.weights, the file pt_inception-2015-12-05-6726825d.pth"
            )
        if self.extractor == "classifier" and self.weights is not None:
            raise ValueError("evaluate.weights are of inception-v3 or efficientnet-lite0: set evaluate.extractor")
        if self.extractor != "efficientnet-lite0" and self.input_size is not None:
            raise ValueError("evaluate.input_size is a setting of evaluate.extractor efficientnet-lite0")
        return self


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
