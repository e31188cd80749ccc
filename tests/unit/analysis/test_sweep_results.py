"""A sweep folder is bound to one model, dataset and seed; their URIs may change."""

import pytest

from pipeline.analysis.sweep_results import POINTS, SweepPlan, check_sweep, join_sweep, put_if_changed
from pipeline.errors import AlreadyExists, ConfigError
from pipeline.storage.store import resolve

PLAN = SweepPlan(
    model_uri="run/checkpoints/step-16",
    model_digest="a" * 64,
    dataset_uri="d",
    dataset_digest="b" * 64,
    generate={"seed": 3, "clip": True},
    evaluate={"seed": 0},
)


def other(**changes):
    return PLAN.model_copy(update=changes)


def test_an_equal_plan_is_joined_wherever_its_model_and_data_lie(store):
    check_sweep(store, PLAN)
    assert list(store.list()) == []
    join_sweep(store, PLAN)
    before = store.read("sweep.json")
    join_sweep(store, other(model_uri="elsewhere", dataset_uri="there"))
    check_sweep(store, other(model_uri="elsewhere"))
    assert store.read("sweep.json") == before


def test_another_one_is_refused_and_told_in_full(store):
    join_sweep(store, PLAN)
    asked = other(
        model_uri="run/checkpoints/step-32",
        model_digest="c" * 64,
        dataset_digest="e" * 64,
        generate={"seed": 9, "clip": 1.0},
        evaluate={"seed": 1},
    )
    for refuse in (join_sweep, check_sweep):
        with pytest.raises(ConfigError) as error:
            refuse(store, asked)
        for text in (
            "--model run/checkpoints/step-16 stored",
            f"dataset {'b' * 16} stored, {'e' * 16} requested",
            "generate.seed 3 stored, 9 requested",
            "generate.clip True stored, 1.0 requested",
            "evaluate.seed 0 stored, 1 requested",
        ):
            assert text in str(error.value)


def test_only_what_is_new_is_put(store):
    assert put_if_changed(store, "a", b"1")
    assert not put_if_changed(store, "a", b"1")
    assert put_if_changed(store, "a", b"2")
    assert store.read("a") == b"2"


def test_a_point_of_dpm_solver_has_a_plus_in_its_name(store):
    """Which a URL would read as a space."""
    point = resolve(store.child(POINTS, "dpm++2m-10-ema").uri, store.config)
    point.create_once("plan.json", b"1")
    with pytest.raises(AlreadyExists):
        point.create_once("plan.json", b"2")
    assert (point.read("plan.json"), point.exists("plan.json")) == (b"1", True)
    assert [entry.key for entry in store.list("points/")] == ["points/dpm++2m-10-ema/plan.json"]
    with point.pa_fs.open_input_file(point.path("plan.json")) as file:
        assert file.read() == b"1"
