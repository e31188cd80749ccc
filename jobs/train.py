"""`ddpm train --dataset URI --run URI`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "train",
    "Train a model on a dataset. The same command resumes an interrupted run.",
    Argument("--dataset", "URI of a dataset made by ddpm ingest", required=True),
    Argument("--run", "URI of the run's folder: created, or resumed", required=True),
    Argument("--steps", "optimiser steps", path="train.steps"),
    Argument("--from-step", "resume from the checkpoint of this step; later ones are deleted", kind=int),
    Argument("--seed", "seed of initial weights, noise and data order", path="train.seed"),
)
def run(call: Call) -> Result:
    from pipeline.training.driver import train

    words = call.arguments
    return train(call.config, words.dataset, words.run, call.dry_run, words.from_step)
