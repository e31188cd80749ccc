"""The configuration of every verb: one frozen model a section, each default stated once.

`pipeline.config.layers` resolves a `Config` from its layers; every run, plan and dataset stores its `Config`.
`digest` covers the settings that decide a result, so `ray`, `storage`, `schedule` and the like are left out.
"""

from typing import Self

from pydantic import Field, model_validator

from pipeline.config.base import Section, digest_of
from pipeline.config.cluster import RayConfig
from pipeline.config.evaluation import EvaluateConfig, MemorisationConfig
from pipeline.config.generation import ExploreConfig, GenerateConfig, SweepConfig
from pipeline.config.ingest import IngestConfig
from pipeline.config.model import DiffusionConfig, ModelConfig
from pipeline.config.nightly import GateConfig, NightlyConfig
from pipeline.config.operations import RegistryConfig, ScheduleConfig, SubmitConfig
from pipeline.config.storage import StorageConfig
from pipeline.config.training import TrainConfig

NOT_IN_DIGEST = ("ray", "storage", "memorisation", "gate", "nightly", "registry", "schedule", "submit")
"""Sections that do not decide a result: where and when a command runs, and what happens to its output."""


class Config(Section):
    """All settings of all verbs: every verb reads its own sections, a recipe may set any."""

    storage: StorageConfig = Field(default_factory=StorageConfig)
    ray: RayConfig = RayConfig()
    ingest: IngestConfig = IngestConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    generate: GenerateConfig = GenerateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    memorisation: MemorisationConfig = MemorisationConfig()
    explore: ExploreConfig = ExploreConfig()
    sweep: SweepConfig = SweepConfig()
    gate: GateConfig = GateConfig()
    nightly: NightlyConfig = NightlyConfig()
    registry: RegistryConfig = RegistryConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    submit: SubmitConfig = SubmitConfig()

    @model_validator(mode="after")
    def _label_dropout_needs_classes(self) -> Self:
        if self.train.label_dropout and self.model.num_classes is None:
            raise ValueError("train.label_dropout needs a class-conditional model: set model.num_classes")
        if self.train.label_dropout and not self.model.null_class:
            raise ValueError("train.label_dropout trains the row of model.null_class, which is false")
        return self

    def digest(self) -> str:
        """sha256 (hex) of the settings that decide a result: all sections but `NOT_IN_DIGEST`."""
        return digest_of(self.model_dump(mode="json", exclude=set(NOT_IN_DIGEST)))
