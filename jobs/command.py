"""The common part of all verbs: flags, configuration, logging, exit code and output."""

import argparse
import contextlib
import difflib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from pipeline.config.layers import (
    Layer,
    environment_layer,
    flag_layer,
    flags_help,
    recipe_layer,
    resolve,
    to_yaml,
    yaml_layer,
)
from pipeline.config.root import Config
from pipeline.errors import ConfigError, PipelineError
from pipeline.log import FORMATS, LEVELS, configure
from pipeline.operations.submission import SubmittedJob

logger = logging.getLogger("ddpm.jobs")

Result = dict[str, Any]


@dataclass(frozen=True)
class Argument:
    """A flag of one verb. With `path` the flag is a short name of that dotted setting, else an argument of the verb.

    nargs: as in argparse. switch: a flag without a value.
    """

    flag: str
    help: str
    path: str | None = None
    required: bool = False
    nargs: str | None = None
    kind: type = str
    switch: bool = False

    @property
    def name(self) -> str:
        """Attribute of the parsed command line."""
        return self.flag.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class Call:
    """A parsed command line."""

    config: Config
    arguments: argparse.Namespace
    dry_run: bool
    rest: tuple[str, ...] = ()
    """For a verb with `passes_on`: the other verb, its words, and the settings that stood before it."""


@dataclass(frozen=True)
class Verb:
    """One verb. `run` returns the JSON object of `--json`, whose `summary` entry is printed as text.

    An `exit_code` entry sets the exit code without an error, such as 5 for a gate that did not pass.
    """

    name: str
    purpose: str
    arguments: tuple[Argument, ...]
    run: Callable[[Call], Result]
    recipe: str | None = None
    passes_on: bool = False
    """The first positional word is another verb, and the words after it belong to that verb."""


def verb(
    name: str, purpose: str, *arguments: Argument, recipe: str | None = None, passes_on: bool = False
) -> Callable[[Callable[[Call], Result]], Verb]:
    """Decorator: makes a `Verb` of the function that runs it."""
    return lambda run: Verb(name, purpose, arguments, run, recipe, passes_on)


COMMON = (
    Argument("--workers", "training workers or generation actors: N or MIN..MAX", path="ray.workers"),
    Argument("--address", "Ray address (default: start a local cluster for this command)", path="ray.address"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].split()
        if unknown:
            close = difflib.get_close_matches(unknown[0], self._option_string_actions, n=1)
            message = f"unknown argument {unknown[0]}{f': did you mean {close[0]}?' if close else ''}"
        raise ConfigError(f"{message} ({self.prog} --help lists every flag)")


def split_dotted(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate dotted flags from other words: `--train.lr 1e-4 --run R` -> [--train.lr=1e-4], [--run, R]."""
    dotted: list[str] = []
    plain: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, _ = word.partition("=")
        if name.startswith("--") and "." in name:
            value = None if equals else next(words, None)
            if value is not None and value.startswith("--"):
                raise ConfigError(f"{word} needs a value, as in {word} true")
            dotted.append(word if value is None else f"{word}={value}")
        else:
            plain.append(word)
    return dotted, plain


def _split_at_verb(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Own words, and the words of the verb named by the first positional; settings before the verb go to both."""
    own: list[str] = []
    settings: list[str] = []
    words = list(argv)
    while words and words[0].startswith("-"):
        name, equals, _ = words[0].partition("=")
        action = parser._option_string_actions.get(name)
        has_value = not equals and ("." in name or (action is not None and action.nargs != 0))
        taken, words = words[: 1 + has_value], words[1 + has_value :]
        own += taken
        settings += taken if "." in name or name in ("--config", "--recipe", "--workers") else []
    return own, (*words[:1], *settings, *words[1:])


def _parser(verb: Verb) -> _Parser:
    parser = _Parser(f"ddpm {verb.name}", description=verb.purpose, allow_abbrev=False, add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="show this and every dotted flag")
    for argument in (*verb.arguments, *COMMON):
        if argument.switch:
            parser.add_argument(argument.flag, help=argument.help, action="store_true")
        elif argument.flag.startswith("-"):
            parser.add_argument(
                argument.flag, help=argument.help, metavar="X", type=argument.kind, nargs=argument.nargs
            )
        else:
            parser.add_argument(argument.flag, help=argument.help, nargs=argument.nargs)
    parser.add_argument("--recipe", help="a complete named run from jobs/recipes", metavar="NAME")
    parser.add_argument(
        "--config", help="a YAML file; repeatable, later files win", metavar="FILE", action="append", default=[]
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print what would be done")
    parser.add_argument("--json", action="store_true", help="end with the result as one JSON object on stdout")
    _add_logging_flags(parser)
    return parser


def _add_logging_flags(parser: _Parser) -> None:
    parser.add_argument(
        "--log-level", help="what stderr shows: debug, info (default), warning, error", choices=LEVELS, metavar="LEVEL"
    )
    parser.add_argument(
        "--log-format", help="text (default), or json: one object a line", choices=FORMATS, metavar="FORMAT"
    )


def _configure_logging(verb: Verb, argv: Sequence[str]) -> None:
    """Apply the logging flags before the rest is parsed, so that errors in other flags are already logged as chosen."""
    configure()
    parser = _Parser(f"ddpm {verb.name}", allow_abbrev=False, add_help=False)
    _add_logging_flags(parser)
    chosen, _ = parser.parse_known_args(argv)
    configure(chosen.log_level or "info", chosen.log_format or "text")


def _short_names(verb: Verb, parsed: argparse.Namespace, words: Sequence[str]) -> Layer:
    """The settings given by short names, but for those whose dotted name comes later in `words`."""
    short = {argument.flag: argument.path for argument in (*verb.arguments, *COMMON) if argument.path is not None}
    names = [word.partition("=")[0] for word in words]
    last = {short.get(name, name.removeprefix("--")): name for name in names if name.startswith("--")}
    values: dict[str, Any] = {}
    for argument in (*verb.arguments, *COMMON):
        value = getattr(parsed, argument.name)
        if argument.path is not None and value is not None and last.get(argument.path) in short:
            section, _, name = argument.path.partition(".")
            values.setdefault(section, {})[name] = value
    return Layer("command line", values)


def _resolve(verb: Verb, parsed: argparse.Namespace, dotted: Sequence[str], words: Sequence[str]) -> Config:
    recipe = parsed.recipe or verb.recipe
    layers = [recipe_layer(recipe)] if recipe else []
    layers += [yaml_layer(Path(file)) for file in parsed.config]
    return resolve([*layers, environment_layer(), flag_layer(dotted), _short_names(verb, parsed, words)])


def _require(verb: Verb, parsed: argparse.Namespace) -> None:
    missing = [a.flag for a in verb.arguments if a.required and getattr(parsed, a.name) is None]
    if missing:
        raise ConfigError(f"ddpm {verb.name} needs {' and '.join(missing)} (--help lists every flag)")


def as_job(verb: Verb, words: Sequence[str]) -> SubmittedJob:
    """A verb's command line as a Ray job, checked here; the contents of its configuration files travel along."""
    dotted, plain = split_dotted(words)
    parsed = _parser(verb).parse_args(plain)
    config = _resolve(verb, parsed, dotted, words)
    _require(verb, parsed)
    if parsed.address not in (None, "auto"):
        raise ConfigError("a job runs on the cluster that receives it: leave out --address after the verb")
    files = {f"{number}-{Path(file).name}": Path(file).read_bytes() for number, file in enumerate(parsed.config)}
    if environment := environment_layer().values:
        files[f"{len(files)}-environment.yaml"] = yaml.safe_dump(environment).encode()
    naming = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    naming.add_argument("--config", action="append")
    names = [a.name for a in verb.arguments if a.path is None]
    arguments = {name: getattr(parsed, name) for name in [*names, "dry_run"]}
    return SubmittedJob(verb.name, tuple(naming.parse_known_args(list(words))[1]), config, arguments, files)


def execute(verb: Verb, argv: Sequence[str]) -> int:
    """Run a verb from its command line; returns the exit code and never raises."""
    try:
        _configure_logging(verb, argv)
        parser = _parser(verb)
        own, rest = _split_at_verb(parser, argv) if verb.passes_on else (argv, ())
        dotted, plain = split_dotted(own)
        parsed = parser.parse_args(plain)
        if parsed.help:
            write_out(f"{parser.format_help()}\n{flags_help(f'ddpm {verb.name}')}\n")
            return 0
        config = _resolve(verb, parsed, dotted, own)
        if parsed.print_config:
            write_out(to_yaml(config))
            return 0
        _require(verb, parsed)
        result = verb.run(Call(config, parsed, parsed.dry_run, rest))
    except KeyboardInterrupt:
        logger.info("interrupted: the same command continues where this one stopped")
        return 130
    except Exception as error:
        return _fail(error)
    if "summary" in result:
        write_out(f"{result['summary']}\n")
    if parsed.json:
        write_out(f"{json.dumps(result, sort_keys=True)}\n")
    return int(result.get("exit_code", 0))


def write_out(text: str) -> None:
    """Write to stdout. A reader that closed its end, such as `head`, has read what it wanted: the rest is dropped."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: Exception) -> int:
    known = _pipeline_error(error)
    if known is None:
        logger.error("unexpected %s: %s", type(error).__name__, error, exc_info=error)
        return 1
    logger.error("%s", known)
    return known.exit_code


def _pipeline_error(error: BaseException | None) -> PipelineError | None:
    """The PipelineError inside Ray's wrappers, if any."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        current = pending.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, PipelineError):
            return current
        failures = getattr(current, "worker_failures", None) or {}
        causes = [getattr(current, "cause", None), current.__cause__, current.__context__]
        pending += [c for c in (*causes, *failures.values()) if isinstance(c, BaseException)]
    return None
