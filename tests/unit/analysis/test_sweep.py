"""A sweep reports all errors before it starts, plans ordinary samples folders, and continues after an interruption."""

from contextlib import nullcontext

import pyarrow.parquet as pq
import pytest
from tiny_model import write_model
from tiny_samples import shard_table

from jobs.__main__ import main
from pipeline.analysis.sweep import describe_sweep, open_sweep, run_sweep
from pipeline.analysis.sweep_grid import grid_errors
from pipeline.analysis.sweep_results import TABLE
from pipeline.config.generation import GenerateConfig, SweepConfig
from pipeline.config.layers import Layer, flag_layer, resolve
from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.context import EvaluationContext
from pipeline.evaluation.results import write_evaluation
from pipeline.generation.commit import commit_shard, create_plan, read_sealed, seal
from pipeline.ingest.dataset import write_dataset
from pipeline.ingest.manifest import DatasetManifest, ShardEntry
from pipeline.metrics.feature_stats import Score
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.models.diffusers_format import model_files
from pipeline.schema import SWEEP
from pipeline.storage import store as stores
from tiny import command, config

pytestmark = pytest.mark.unit

GRID = {"samplers": "ddim,heun", "steps": "5,10", "ema": "ema,raw"}
NAMES = ("ema", "slow", "raw")


def settings(sweep=GRID, **sections):
    return config(sweep=sweep, **sections)


def store(uri):
    return stores.resolve(str(uri), Config().storage)


@pytest.fixture
def world(tmp_path):
    """URIs of a run, a dataset (its manifest is all that is read before the start) and a folder for the sweep."""
    write_model(f"{tmp_path}/run", config())
    make_dataset(store(tmp_path / "data"))
    return f"{tmp_path}/run", f"{tmp_path}/data", f"{tmp_path}/sweep"


def make_dataset(data, size=8):
    shards = tuple(
        ShardEntry(key=f"data/{split}", bytes=1, sha256="0" * 64, split=split, rows=100, first_id=first)
        for split, first in (("train", 0), ("heldout", 100))
    )
    values = {"source": "s", "source_rows": 200, "classes": None, "rejects": (), "reject_counts": {}, "ingest": {}}
    write_dataset(
        data,
        DatasetManifest(**values, image_size=size, channels=1, shards=shards, channel_mean=(0,), channel_std=(1,)),
    )


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(sweep, generate=None, num_timesteps=100):
    return list(grid_errors(SweepConfig(**sweep), GenerateConfig(**generate or {}), num_timesteps, NAMES))


def test_short_flags_and_dotted_ones_are_the_same():
    short = SweepConfig(samplers="ddim, dpm++2m", steps="10,20", ema="ema")
    dotted = resolve([flag_layer(["--sweep.samplers=ddim,dpm++2m", "--sweep.steps=10,20"])]).sweep
    assert short == dotted
    assert (short.samplers, short.steps) == (("ddim", "dpm++2m"), (10, 20))


@pytest.mark.parametrize("values", [{"steps": "10,x"}, {"steps": "0"}, {"samplers": []}, {"ema": ()}])
def test_what_is_no_list_of_such_values_is_refused_by_its_field(values):
    with pytest.raises(ConfigError, match=f"sweep.{next(iter(values))}"):
        resolve([Layer("a", {"sweep": values})])


def test_everything_that_is_wrong_is_told_at_once():
    grid = {"samplers": "ddin,heun,heun", "steps": "10,200,10", "ema": "ema,slwo,ema"}
    lines = refused(grid, {"eta": 0.5, "variance": "fixed_small"})
    assert [line.partition(":")[0] for line in lines[:3]] == ["sweep.samplers", "sweep.steps", "sweep.ema"]
    text = "\n".join(lines)
    for part in (
        "no sampler 'ddin' (did you mean ddim?)",
        "200 are more than the 100 timesteps",
        "no weights 'slwo' (did you mean slow?); it has ema, slow, raw",
        "sweep.samplers: heun more than once",
        "sweep.steps: 10 more than once",
        "sweep.ema: ema more than once",
        "generate.eta belongs to sampler 'ddim'",
        "generate.variance belongs to sampler 'ddpm'",
    ):
        assert part in text
    assert len(lines) == 8


def test_a_good_grid_is_not_refused():
    assert (
        refused({"samplers": "ddpm,ddim", "steps": "1,100", "ema": "slow,raw"}, {"eta": 1, "variance": "fixed_small"})
        == []
    )


def test_the_command_refuses_in_one_message_and_makes_nothing(world, tmp_path, capsys):
    model, data, out = world
    words = command(tmp_path, "sweep", "--model", model, "--dataset", data, "--out", out)[3:]
    assert main([*words, "--samplers", "ddim,plms", "--steps", "10,9999", "--ema", "none"]) == 2
    error = capsys.readouterr().err
    assert [line.startswith("error: sweep.") for line in error.splitlines()] == [True] * 3
    assert list(store(out).list()) == []


def test_guidance_that_the_model_cannot_follow_is_told_once(world):
    with pytest.raises(ConfigError, match=r"^generate\.guidance 2: the model has no classes[^\n]*$"):
        open_sweep(settings(generate={"guidance": 2.0}), *world)


def test_other_images_and_too_few_are_refused(world, tmp_path):
    model, _, out = world
    make_dataset(store(tmp_path / "large"), size=16)
    with pytest.raises(DataError, match=r"8x8x1.*16x16x1"):
        open_sweep(settings(), model, f"{tmp_path}/large", out)
    with pytest.raises(ConfigError, match="2 images a side"):
        open_sweep(settings(generate={"num_samples": 1}), *world)


# --- what is planned -------------------------------------------------------------------------------------------------


def test_points_are_ordinary_jobs_on_common_noise(world):
    sweep = open_sweep(settings(generate={"seed": 4, "eta": 0.5}), *world)
    names = [f"{sampler}-{steps}-{ema}" for sampler in ("ddim", "heun") for steps in (5, 10) for ema in ("ema", "raw")]
    assert [point.name for point in sweep.points] == names
    assert sweep.points[0].store.uri == f"{world[2]}/points/ddim-5-ema"
    assert {(p.plan.seed, p.plan.num_samples) for p in sweep.points} == {(4, 80)}
    assert [p.plan.eta for p in sweep.points] == [0.5] * 4 + [0.0] * 4, "eta is DDIM's alone"
    assert [p.evaluations for p in sweep.points] == [5, 5, 10, 10, 9, 9, 19, 19]
    for point in sweep.points:
        asked = point.config.generate
        assert (asked.sampler, asked.steps, asked.weights) == (point.plan.sampler, point.plan.steps, point.plan.weights)
    assert len({p.plan.fingerprint for p in sweep.points}) == 8


def test_a_dry_run_counts_what_is_missing_and_its_work(world):
    told = describe_sweep(open_sweep(settings(), *world))
    assert (told["points"], told["missing"]) == (8, 8)
    assert told["evaluations"] == 80 * 2 * (5 + 10 + 9 + 19)
    assert list(store(world[2]).list()) == []


def test_a_run_that_trains_on_does_not_mix_into_a_sweep(world, tmp_path):
    model, data, out = world
    finished(open_sweep(settings(), model, data, out))
    write_model(f"{tmp_path}/later", config(), step=2)
    for entry in store(tmp_path / "later").list("checkpoints/"):
        store(model).put(entry.key, store(tmp_path / "later").read(entry.key))
    with pytest.raises(ConfigError, match="step-000000001 stored"):
        open_sweep(settings(), model, data, out)
    open_sweep(settings(), f"{model}/checkpoints/step-000000001", data, out)


def test_a_diffusers_folder_has_one_set_of_weights(world, tmp_path):
    model, data, out = world
    folder = store(tmp_path / "folder")
    found = find_model(model, "ema", Config().storage)
    for name, content in model_files(load_unet(found, Config().storage), found.diffusion).items():
        folder.put(name, content)
    grid = {"samplers": "ddim", "steps": "5", "ema": "ema"}
    (point,) = open_sweep(settings(grid), folder.uri, data, out).points
    assert point.plan.weights == "folder"
    with pytest.raises(ConfigError, match="no weights 'raw'"):
        open_sweep(settings(), folder.uri, data, out)


# --- what is done ----------------------------------------------------------------------------------------------------


def generate(config, model, out, failed=()):
    """The real protocol with flat images in place of a network."""
    sweep_plan = next(p.plan for p in generate.sweep.points if p.store.uri == out)
    assert (model, config.generate.sampler) == (generate.sweep.plan.model_uri, sweep_plan.sampler)
    context = store(out)
    create_plan(context, sweep_plan)
    for shard in range(sweep_plan.num_shards):
        commit_shard(context, sweep_plan, shard, shard_table(sweep_plan, shard, failed=failed), "a")
    if seal(context, sweep_plan).failed:
        raise DataError("some samples could not be made\nsample 3")


def evaluate(config, samples, dataset):
    """Scores that follow from the cost of a point: fewer steps are worse."""
    sweep = generate.sweep
    point = next(p for p in sweep.points if p.store.uri == samples)
    context = EvaluationContext(config, point.store, sweep.dataset, *read_sealed(point.store), sweep.manifest)
    values = {"samples": 100 / point.evaluations, "floor": 1.0, "blurred": 300.0, "noise": 400.0}
    scores = tuple(Score(metric="FD-x", kind=k, value=v, n=context.n, reference_n=100) for k, v in values.items())
    protocol = {
        "id": context.digest,
        "dataset_digest": context.manifest.digest(),
        "samples_plan": context.plan.fingerprint,
    }
    protocol |= {
        "reference": "train",
        "n": context.n,
        "failed": context.sealed.failed,
        "extractor": "x",
        "feature_dim": 2,
    }
    write_evaluation(
        point.store,
        scores,
        {**protocol, "weights_sha256": "w", "preprocessing": "p", "heldout_accuracy": 0.9, "warnings": ()},
    )


def finished(sweep, make=generate):
    """run_sweep without Ray."""
    generate.sweep = sweep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.analysis.sweep.cluster", lambda *_: nullcontext())
        return run_sweep(sweep, make, evaluate)


def test_a_row_a_point_with_its_own_scores(world):
    result = finished(open_sweep(settings(), *world))
    table = pq.read_table(f"{world[2]}/{TABLE}")
    assert table.schema.equals(SWEEP)
    assert table["sampler"].to_pylist() == ["ddim"] * 4 + ["heun"] * 4
    assert table["fd"].to_pylist() == [100 / e for e in (5, 5, 10, 10, 9, 9, 19, 19)]
    assert set(table["n"].to_pylist()) == {80}
    assert (result["best"]["sampler"], result["best"]["steps"], result["best"]["ema"]) == ("heun", 10, "ema")
    assert (result["state"], result["points"], result["made"]) == ("swept", 8, 8)


def test_again_does_nothing_and_a_stopped_sweep_goes_on(world):
    calls = []

    def stops(config, model, out):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(out)
        generate(config, model, out)

    with pytest.raises(KeyboardInterrupt):
        finished(open_sweep(settings(), *world), stops)
    assert not store(world[2]).exists(TABLE)
    assert describe_sweep(open_sweep(settings(), *world))["missing"] == 5
    assert finished(open_sweep(settings(), *world))["made"] == 5
    before = {entry.key: store(world[2]).read(entry.key) for entry in store(world[2]).list()}

    def never(*_):
        raise AssertionError("a finished point is made again")

    again = finished(open_sweep(settings(), *world), never)
    assert (again["state"], again["made"]) == ("already done", 0)
    assert {entry.key: store(world[2]).read(entry.key) for entry in store(world[2]).list()} == before


def test_a_wider_grid_keeps_what_is_there(world):
    finished(open_sweep(settings({**GRID, "ema": "ema"}), *world))
    assert finished(open_sweep(settings(), *world))["made"] == 4


def test_failed_samples_are_counted_and_do_not_stop_the_sweep(world):
    result = finished(open_sweep(settings(), *world), lambda *given: generate(*given, failed=(3,)))
    assert [(row["failed"], row["n"]) for row in result["rows"]] == [(1, 79)] * 8


def test_errors_that_leave_a_point_unsealed_end_the_sweep(world):
    def breaks(*_):
        raise DataError("the model is gone")

    with pytest.raises(DataError, match="the model is gone"):
        finished(open_sweep(settings(), *world), breaks)
