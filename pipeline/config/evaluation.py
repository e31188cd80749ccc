"""Settings of `ddpm evaluate`: feature extractor, scores, and the memorisation search."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Section


class EvaluateConfig(Section):
    """Scores of samples on the features of one network, by default a classifier of the training split."""

    num_images: int | None = Field(
        None,
        ge=2,
        description="number of samples to score; unset: all, but no more than there are held-out images, unless there "
        "are fewer than 2 of these",
    )
    extractor: Literal["classifier", "efficientnet-lite0", "inception-v3"] = Field(
        "classifier",
        description="network that computes the features: a classifier trained on the dataset, or a pretrained one; "
        "inception-v3 needs evaluate.weights and gives FID, KID and IS",
    )
    weights: str | None = Field(
        None, description="URI of the pretrained weights: a safetensors file or a PyTorch state dict"
    )
    input_size: int | None = Field(
        None, ge=32, le=1024, description="efficientnet-lite0: height and width of its input, pixels; unset: 224"
    )
    classifier_epochs: int = Field(30, ge=1, description="extractor classifier: training epochs")
    classifier_width: int = Field(32, ge=4, description="extractor classifier: channels of its first layer")
    extrapolate: bool = Field(False, description="also estimate the Frechet distance for infinitely many images")
    bits_per_dim: int = Field(
        0,
        ge=0,
        description="number of held-out images for the likelihood bound, T network calls for each image; 0: none",
    )
    seed: int = Field(0, ge=0, description="seed of the classifier, of random subsets and of noise images")

    @model_validator(mode="after")
    def _weights_and_input_size_fit_the_extractor(self) -> Self:
        if self.extractor == "inception-v3" and self.weights is None:
            raise ValueError(
                "evaluate.extractor inception-v3 needs evaluate.weights, the file pt_inception-2015-12-05-6726825d.pth"
            )
        if self.extractor == "classifier" and self.weights is not None:
            raise ValueError("evaluate.weights needs evaluate.extractor inception-v3 or efficientnet-lite0")
        if self.extractor != "efficientnet-lite0" and self.input_size is not None:
            raise ValueError("evaluate.input_size needs evaluate.extractor efficientnet-lite0")
        return self


class MemorisationConfig(Section):
    """Search for samples that are near-copies of training images."""

    num_samples: int | None = Field(
        10_000, ge=1, description="samples to search for, lowest ids first; null: all. Memory grows with the number"
    )
    neighbours: int = Field(
        50, ge=2, le=1000, description="k: nearest training images that set the scale of an image's nearest distance"
    )
    closeness: float = Field(
        0.5, gt=0, lt=1, description="a near-copy's relative distance is at most this share of the held-out median"
    )
    flips: bool | None = Field(
        None, description="also compare with mirrored training images; unset: if train.flip mirrored them in training"
    )
    pairs: int = Field(32, ge=1, le=500, description="number of closest pairs shown on each image sheet")
