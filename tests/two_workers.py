"""What tests/unit/training/test_parallel.py runs in processes of their own: no Ray, no data, one thread each."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.config.root import Config
from pipeline.training.inputs import MicroBatch
from pipeline.training.trainer import Trainer

LANES, STEPS, HALFWAY = 3, 4, 2
KINDS = ("ddp", "fsdp")


def settings(kind, lanes=LANES, **train):
    """Unequal lanes, three averages, blocks that are recomputed, a bound that importance sampling follows."""
    return Config.model_validate(
        {
            "model": {
                "block_out_channels": [8, 16],
                "layers_per_block": 1,
                "attention_levels": [1],
                "norm_num_groups": 4,
                "num_classes": 3,
                "dropout": 0.1,
                "gradient_checkpointing": True,
            },
            "diffusion": {"variance": "learned_range", "objective": "hybrid", "timestep_sampling": "importance"},
            "train": {
                "sharding": kind,
                "lanes": lanes,
                "micro_batch": 2,
                "lr": 1e-3,
                "warmup_steps": 2,
                "more_ema": {"half": {"half_life_images": 20}, "wide": {"relative_width": 0.25}},
                **train,
            },
        }
    )


def batch(step, lane):
    ids = torch.tensor([100 * step + lane, 100 * step + lane + 50])
    x_0 = torch.sin(ids[:, None].float() + torch.arange(64)[None, :]).reshape(-1, 1, 8, 8)
    return MicroBatch(x_0, ids, ids % 3, epoch=0)


def trainer(config, world_size=1):
    reduce = dist.all_reduce if world_size > 1 else lambda tensor: None
    return Trainer(config, 8, 1, torch.device("cpu"), world_size, reduce)


def advance(one, steps, rank=0, world_size=1):
    """Results of some steps, as lists."""
    results = [
        one.step([batch(step, lane) for lane in range(rank, one.config.train.lanes, world_size)]) for step in steps
    ]
    return [
        {
            "loss": float(r.loss),
            "grad_norm": float(r.grad_norm),
            "by_t": r.loss_by_t.tolist(),
            "count": r.count_by_t.tolist(),
            "own_seconds": r.own_seconds,
        }
        for r in results
    ]


def copy(tensors):
    return {group: {name: t.detach().clone() for name, t in part.items()} for group, part in tensors.items()}


def _straight(kind, rank, samples):
    """Four steps, with samples of an average in the middle, which must leave no trace."""
    one = trainer(settings(kind), 2)
    results = advance(one, range(HALFWAY), rank, 2)
    halfway = copy(one.tensors())
    if samples:
        with torch.inference_mode(), one.averaged("wide") as network:
            at, labels = torch.tensor([500]), torch.tensor([1, 2])
            drawn = network(batch(0, 0).x_0, at, labels).clone()
    results += advance(one, range(HALFWAY, STEPS), rank, 2)
    return {
        "results": results,
        "halfway": halfway,
        "end": copy(one.tensors()),
        "drawn": drawn if samples else None,
        "replica": copy({"model": one.replica()})["model"],
    }


def _resumed(kind, rank, halfway):
    one = trainer(settings(kind), 2)
    one.load(halfway, HALFWAY)
    advance(one, range(HALFWAY, STEPS), rank, 2)
    return copy(one.tensors())


def _overflow(kind, rank):
    """A fresh network, whose last layer alone has gradients: split by rows, only rank 0 meets the overflow."""
    one = trainer(settings(kind, precision="fp16"), 2)
    one.precision.load({"scale": torch.tensor(2.0**24), "growth_tracker": torch.tensor(0)})
    before = copy(one.tensors())
    skipped = advance(one, [0], rank, 2)
    after = copy(one.tensors())
    one.precision.load({"scale": torch.tensor(256.0), "growth_tracker": torch.tensor(0)})
    return {"skipped": skipped, "before": before, "after": after, "taken": advance(one, [1], rank, 2)}


def _work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    straight = {kind: _straight(kind, rank, samples=True) for kind in KINDS}
    found = {
        "straight": straight,
        "undisturbed": _straight("fsdp", rank, samples=False)["end"],
        "resumed": {
            kind: _resumed(kind, rank, straight[other]["halfway"])
            for kind, other in zip(KINDS, KINDS[::-1], strict=True)
        },
        "overflow": {kind: _overflow(kind, rank) for kind in KINDS},
    }
    torch.save(found, f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


def both(folder):
    """What each of two ranks found."""
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(_work, args=(str(folder),), nprocs=2)
    return [torch.load(f"{folder}/rank-{rank}.pt") for rank in range(2)]
