"""The command line: exit codes, one error line without a traceback, logging flags, version."""

import json
import logging
import subprocess
import sys

import pytest

import pipeline
from jobs.__main__ import VERBS, main
from jobs.command import Argument, Verb, as_job, execute, split_dotted
from pipeline.errors import DataError, StorageError

pytestmark = pytest.mark.unit


def verb(run):
    arguments = (Argument("--run", "a URI", required=True), Argument("--seed", "seed", path="train.seed"))
    return Verb("train", "test", arguments, run)


@pytest.mark.parametrize(("error", "code"), [(DataError("no rows"), 3), (StorageError("down"), 4), (KeyError("x"), 1)])
def test_errors_map_to_exit_codes(capsys, error, code):
    def run(call):
        raise error

    assert execute(verb(run), ["--run", "x"]) == code
    assert f"error: {error}" in capsys.readouterr().err or code == 1


def test_a_pipeline_error_inside_a_wrapper_is_found(capsys):
    def run(call):
        error = RuntimeError("training failed")
        error.worker_failures = {1: DataError("rank one found no rows")}
        raise error

    assert execute(verb(run), ["--run", "x"]) == 3
    assert capsys.readouterr().err == "error: rank one found no rows\n"


def test_json_is_the_last_line_and_short_names_are_settings(capsys):
    def run(call):
        return {"seed": call.config.train.seed, "run": call.arguments.run, "lr": call.config.train.lr, "summary": "ok"}

    assert execute(verb(run), ["--train.lr", "0.5", "--run", "x", "--seed", "7", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok"
    assert json.loads(lines[-1]) == {"seed": 7, "run": "x", "lr": 0.5, "summary": "ok"}


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["trian"], "did you mean train"),
        (["train", "--runn", "x"], "unknown argument --runn: did you mean --run?"),
        (["train"], "needs --dataset and --run"),
        (["train", "--train.steps", "0", "--run", "x", "--dataset", "y"], "train.steps"),
        (["train", "--run", "x", "--dataset", "ftp://host/x"], "ftp"),
    ],
)
def test_bad_command_lines_exit_2(capsys, argv, text):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error


def test_a_missing_dataset_is_exit_3(capsys, tmp_path):
    assert main(["train", "--dataset", str(tmp_path / "none"), "--run", str(tmp_path / "run")]) == 3
    assert "no dataset at" in capsys.readouterr().err


def test_dotted_flags_keep_their_values():
    assert split_dotted(["--a", "1", "--b.c", "2", "d", "--e.f=3"]) == (["--b.c=2", "--e.f=3"], ["--a", "1", "d"])


@pytest.mark.parametrize(
    ("words", "seed"),
    [
        (["--seed", "3", "--train.seed", "5"], 5),
        (["--train.seed", "5", "--seed", "3"], 3),
        (["--train.seed=5", "--seed=3", "--train.seed=9", "--train.lr", "1"], 9),
        (["--seed=3", "--seed", "4"], 4),
    ],
)
def test_the_last_of_short_and_dotted_names_wins(capsys, words, seed):
    assert execute(verb(lambda call: {"seed": call.config.train.seed}), ["--run", "x", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"seed": seed}
    submitted = as_job(verb(lambda call: {}), ["--run", "x", *words])
    assert submitted.config.train.seed == seed


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model.block_out_channels", "32,32", "--model.block_out_channels=64,64,64"], "[64, 64, 64]"),
        (["--ingest.label_map", "a=b", "--ingest.label_map=c=d"], "label_map: {c: d}"),
        (["--ingest.label_map", "a=b", "--ingest.label_map", "null"], "label_map: null"),
        (["--submit.env_vars", "A=1,B=2", "--submit.env_vars", "C=3"], "env_vars: {C: '3'}"),
        (["--generate.guidance_interval", "0,1", "--generate.guidance_interval", "0.2,0.8"], "[0.2, 0.8]"),
        (["--train.flip", "true", "--train.flip", "false"], "flip: false"),
    ],
)
def test_the_last_flag_of_lists_maps_and_scalars_wins(capsys, words, line):
    assert main(["train", "--print-config", *words]) == 0
    assert line in capsys.readouterr().out


def test_a_key_given_twice_is_exit_2_with_both_lines(capsys, tmp_path):
    (tmp_path / "twice.yaml").write_text("train:\n  lr: 0.5\nmodel: {num_classes: 4}\ntrain:\n  flip: true\n")
    assert main(["train", "--print-config", "--config", str(tmp_path / "twice.yaml")]) == 2
    assert "twice.yaml: 'train' is given twice, on lines 1 and 4" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_shows_its_flags_and_prints_its_config(capsys, name):
    assert main([name, "--help"]) == 0
    assert "--train.lr" in capsys.readouterr().out
    assert main([name, "--print-config"]) == 0
    assert "diffusion:" in capsys.readouterr().out


def test_a_dotted_flag_does_not_swallow_the_next_flag(capsys):
    assert main(["train", "--train.flip", "--run", "r"]) == 2
    assert "--train.flip needs a value" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["version", "--version"])
def test_the_version_is_one_line(capsys, word):
    assert main([word]) == 0
    assert capsys.readouterr().out == f"ddpm {pipeline.__version__}\n"


def test_a_reader_that_closes_stdout_early_sees_no_traceback():
    for words in (["--help"], ["train", "--help"], ["train", "--print-config"]):
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0


def test_errors_are_json_lines_when_that_is_asked_for(capsys):
    def run(call):
        raise DataError("no rows\nin two shards")

    assert execute(verb(run), ["--run", "x", "--log-format", "json"]) == 3
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["message"]) == ("error", "no rows\nin two shards")
    assert main(["train", "--runn", "x", "--log-format=json"]) == 2
    assert "did you mean --run?" in json.loads(capsys.readouterr().err)["message"]


def test_the_log_level_is_one_of_four(capsys):
    def run(call):
        logging.getLogger("ddpm.test").info("a notice")
        return {}

    assert execute(verb(run), ["--run", "x", "--log-level", "warning"]) == 0
    assert capsys.readouterr().err == ""
    assert execute(verb(run), ["--run", "x"]) == 0
    assert capsys.readouterr().err == "a notice\n"
    assert execute(verb(run), ["--run", "x", "--log-level", "loud"]) == 2
    assert "'debug', 'info', 'warning', 'error'" in capsys.readouterr().err


DEATH_AT_THE_END = """
import atexit, os, sys
import jobs.__main__ as program

class Bomb:  # what is left in a module dies while the interpreter is taken down
    def __del__(self, abort=os.abort):
        abort()

def main():
    sys.bomb = Bomb()
    atexit.register(print, "handler ran")
    print("done")
    return {code}

program.main = main
program.{end}()
"""


@pytest.mark.parametrize("code", [0, 4])
def test_a_process_that_would_abort_at_its_end_still_gives_its_exit_code(code):
    def run(end):
        text = DEATH_AT_THE_END.format(code=code, end=end)
        return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)

    ended = run("program")
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "done\nhandler ran\n", "")
    assert run("main").returncode < 0  # without it the bomb goes off
