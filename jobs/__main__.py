"""`ddpm VERB ...`, the same as `python -m jobs VERB ...`."""

import atexit
import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from jobs.command import execute, write_out
from pipeline import __version__
from pipeline.log import configure, logger

VERBS = {
    "ingest": "source images -> dataset (shuffled Parquet shards and a manifest)",
    "train": "dataset -> run (checkpoints, metrics, grids); the same command resumes",
    "generate": "model -> samples, each exactly once; the same command finishes what is missing",
    "export": "checkpoint -> a diffusers folder",
    "evaluate": "samples + dataset -> Frechet distance between its floor and ceilings",
    "memorisation": "samples + dataset -> near-copies of training images, the closest pairs side by side",
    "report": "runs and samples -> one self-contained HTML page",
    "verify": "prove a dataset, run, checkpoint, samples, registry or nights from the store alone",
    "explore": "model -> predictions on the way, interpolations, shared latents, rate and distortion",
    "sweep": "samplers x steps x weights -> quality against cost, a table and a page",
    "merge": "finished samples folders -> one",
    "reproduce": "make one stored sample again and compare hashes",
    "promote": "a version becomes champion, by the gate or by decision",
    "rollback": "the champion before this one again",
    "models": "versions and promotions of a model, with reasons",
    "nightly": "one night: snapshot, train, compare, promote or hold",
    "schedule": "keep a schedule in the foreground, or write it for systemd, cron, Kubernetes, KubeRay or Airflow",
    "submit": "any of these as a job of a Ray cluster: sent once, followed to its exit code",
    "doctor": "check cluster, store and working directory before work is given to them",
    "demo": "all of the above on handwritten digits",
}


def usage() -> str:
    """The list of verbs."""
    lines = [f"  {name:<13}{purpose}" for name, purpose in VERBS.items()]
    return "\n".join(["usage: ddpm VERB [flags]   (ddpm VERB --help lists the flags; ddpm --version)", "", *lines])


def unknown(word: str) -> str:
    """What to say of a word that is no verb."""
    close = difflib.get_close_matches(word, VERBS, n=1)
    return f"unknown verb {word!r}{f': did you mean {close[0]}?' if close else ''}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the result is the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        write_out(f"{usage()}\n")
        return 0
    if words[0] in ("--version", "version"):
        write_out(f"ddpm {__version__}\n")
        return 0
    if words[0] not in VERBS:
        configure()
        logger.error("%s", unknown(words[0]))
        logger.info("%s", usage())
        return 2
    return execute(importlib.import_module(f"jobs.{words[0]}").VERB, words[1:])


def program() -> NoReturn:
    """`main` as a process, which ends with its exit code whatever Python's own end would do.

    While the interpreter is taken down, a thread of Arrow's may still let go of a Python buffer, and the process aborts
    after its work is recorded. So the last exit handler - the first registered - leaves before that begins.
    """
    code = 1

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
                stream.flush()
        os._exit(code)

    atexit.register(leave)
    try:
        code = main()
    except KeyboardInterrupt:  # before the verb itself could answer
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    program()
