"""The command line: `ddpm VERB ...`, the same as `python -m jobs VERB ...`."""

import atexit
import contextlib
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from jobs.command import execute, write_out
from pipeline import __version__
from pipeline.log import configure, logger

VERBS = {
    "ingest": "images -> dataset: shuffled Parquet shards and a manifest",
    "train": "dataset -> run: checkpoints, metrics, sample grids; the same command resumes",
    "generate": "model -> samples folder, each sample exactly once; the same command resumes",
    "export": "checkpoint -> diffusers folder",
    "evaluate": "samples + dataset -> Frechet and kernel distance, with floor and ceilings",
    "memorisation": "samples + dataset -> near-copies of training images, with the closest pairs as images",
    "report": "runs and samples -> one self-contained HTML page",
    "verify": "check a dataset, run, checkpoint, samples, registry or nights against its manifest",
    "explore": "model -> denoising steps, interpolations, shared latents, rate-distortion curve",
    "sweep": "model -> quality against cost over samplers, steps and weights: a table and a page",
    "merge": "finished samples folders -> one samples folder",
    "reproduce": "generate one stored sample again and compare hashes",
    "promote": "make a model version the champion, by the gate or by a person's decision",
    "rollback": "make the previous champion champion again",
    "models": "list versions and promotions of a model, with reasons",
    "nightly": "one night: ingest new data, train, evaluate, promote or hold",
    "schedule": "run a command on schedule, or render it for systemd, cron, Kubernetes, KubeRay or Airflow",
    "submit": "run a verb as a job of a Ray cluster and follow it to its exit code",
    "doctor": "check cluster, store and working directory before a run",
    "demo": "all of the above on handwritten digits",
}


def usage() -> str:
    """The list of verbs."""
    lines = [f"  {name:<13}{purpose}" for name, purpose in VERBS.items()]
    return "\n".join(["usage: ddpm VERB [flags]   (ddpm VERB --help lists the flags; ddpm --version)", "", *lines])


def unknown(word: str) -> str:
    """The error message for an unknown verb, with the closest known one."""
    close = difflib.get_close_matches(word, VERBS, n=1)
    return f"unknown verb {word!r}{f': did you mean {close[0]}?' if close else ''}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
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
    return execute(importlib.import_module(f"jobs.{words[0]}").run, words[1:])


def heed_hangup() -> None:
    """A closed terminal stops every verb as SIGTERM does; `nohup` keeps its meaning."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def program() -> NoReturn:
    """Run `main` as a process that ends with its exit code even if the interpreter's shutdown would crash.

    During shutdown a thread of Arrow may still release a Python buffer, which aborts the process after its work is
    done. The first registered exit handler runs last and ends the process before that.
    """
    code = 1

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed, or the reader has gone
                stream.flush()
        os._exit(code)

    atexit.register(leave)
    heed_hangup()
    try:
        code = main()
    except KeyboardInterrupt:  # before `execute` handles it
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    program()
