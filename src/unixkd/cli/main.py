"""The command line: from words to options to a command; imports no torch, so help is instant."""

from __future__ import annotations

import contextlib
import difflib
import gc
import io
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unixkd.cli import recipes
from unixkd.cli.options import COMMANDS, GROUPS, check_names, check_shares, named_code
from unixkd.config import flatten, without_gone
from unixkd.errors import UsageError, UserError, parse_yaml, read_text, show_logged_names, shown, unknown_name
from unixkd.names import announced, methods, phase
from unixkd.training.distributed.launch import LeaderError, processes, rank
from unixkd.training.stopping import EXIT_CODE

if TYPE_CHECKING:  # `unixkd --help` is printed without these imports
    from jsonargparse import ArgumentParser, Namespace

USAGE, STOPPED = 2, EXIT_CODE
"""Exit codes: bad usage; stopped on request and resumable."""

SHORTHANDS = {f"--{group}": f"--{group}.name" for group in ("model", "teacher", "student", "method", "data")}
SHORTHANDS |= {f"--{name}": f"--train.{name}" for name in ("epochs", "lr", "seed", "device")}
SHORTHANDS |= {"--print-config": "--print_config"}
LISTS: tuple[str, ...] = ("--methods", "--seeds", "--formats", "--train.milestones")
LISTS += ("--loss.student_layers", "--loss.teacher_layers")
REFERENCE = {"--k": "--method.keep", "--b": "--method.mix_from", "--w": "--method.steepness"}
REFERENCE |= {"--teacher-path": "--teacher", "--teacher-ckpt": "--teacher", "--student-arch": "--student"}
REFERENCE |= {"--ce-weight": "--loss.ce", "--kd-weight": "--loss.kd", "--T": "--loss.temperature"}
REFERENCE |= {"--strategy": "--method.scorer", "--other-distill": "--loss.at", "--gpu-id": "--device"}
"""Flags of the reference code whose names here are far from theirs; docs/from-reference.md has all of them."""
SCORERS = {"0": "random", "1": "least_confidence", "2": "margin", "3": "entropy"}
"""The reference's numbers."""

GC_THRESHOLDS = (50_000, 20, 100)
"""Of the garbage collector: importing torch makes a million objects, and they stay."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 failed, 2 bad usage, 75 stopped and resumable."""
    show_logged_names()
    if rank() > 0:  # what is warned about in every process, the first one says
        logging.getLogger("unixkd").setLevel(logging.ERROR)
    if (
        "torch" not in sys.modules
    ):  # which reads it when it is loaded: a thread that waits spinning takes a core
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if sys.stdout is None:  # it was closed before the start
        sys.stdout = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what its encoding lacks is shown as an escape sequence
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return run_command(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except (OSError, SystemExit) as error:  # rich makes SystemExit of a closed pipe
        failure = error.__context__ if isinstance(error, SystemExit) else error
        if not isinstance(failure, OSError) or not output_failed(failure):
            raise
        tell(UserError(f"the output cannot be written: {failure.strerror}"))
        return UserError.exit_code


def output_failed(failure: OSError) -> bool:
    """Whether standard output fails; it then leads nowhere, or Python would fail once more at its end."""
    failed = isinstance(failure, BrokenPipeError)
    try:
        sys.stdout.write("\n")  # what failed before may no longer wait to be written
        sys.stdout.flush()
    except OSError:
        failed = True
    if failed:
        with contextlib.suppress(OSError):  # in a test it is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return failed


def run_command(arguments: list[str]) -> int:
    """The exit code of a command; what is wrong with it is told."""
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            sys.stdout.write(overview())
            return 0 if arguments else USAGE
        if arguments[0] == "--version":
            from importlib.metadata import version

            sys.stdout.write(f"unixkd {version('unixkd')}\n")
            return 0
        name = arguments.pop(0)
        if name not in COMMANDS:
            raise unknown_name("command", name, COMMANDS)
        if {"-h", "--help"}.intersection(arguments):
            sys.stdout.write(make_parser(name).format_help())  # argparse would pass over a failure to write
            return 0
        options = parse(name, arguments)
        check_names(options)
        check_shares(options)
        check_alone(name)
        gc.set_threshold(*GC_THRESHOLDS)
        with announced(announce):
            with phase("loading PyTorch"):
                from unixkd.cli import handlers
            handlers.HANDLERS[name](options)
    except UserError as error:
        tell(error)
        return error.exit_code
    except KeyboardInterrupt as stop:
        where = f"{stop}; " if str(stop) else "stopped; "
        if rank() == 0:
            complain(f"{where}the same command with --resume goes on (compare, demo: as it is)")
        return STOPPED
    return 0


def tell(error: UserError) -> None:
    """Print an error; one that all processes of a run meet, or that the first has reported, only once."""
    if rank() == 0:
        complain(f"error: {error}", *error.details)
    elif not isinstance(error, LeaderError | UsageError):
        complain(f"error in process {rank()}: {error}")


def complain(text: str, *details: str) -> None:
    """Print a line to standard error, and its details; where that is closed or full the exit code has to do."""
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write("".join([f"unixkd: {shown(text)}\n", *(f"  {shown(line)}\n" for line in details)]))


def announce(text: str) -> None:
    """Say on standard error what is being waited for: results on standard output stay what they are."""
    if rank() == 0:
        with contextlib.suppress(OSError, AttributeError, ValueError):  # it may be closed
            sys.stderr.write(f"{shown(text)} …\n")
            sys.stderr.flush()


def check_alone(name: str) -> None:
    """Raise where several processes were started for a command that one has to do."""
    if processes() > 1 and not COMMANDS[name].shared:
        raise UsageError(f"{name} is for one process, not for {processes()} (WORLD_SIZE): start it by itself")


def overview() -> str:
    """The text of `unixkd --help`."""
    lines = "\n".join(f"  {name:<10}{command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: unixkd COMMAND [OPTIONS]\n\n"
        "Distil a neural network with the least computation.\n\n"
        f"commands:\n{lines}\n\n"
        "unixkd COMMAND --help lists a command's options. Every option can stand in a YAML file given\n"
        "with --config; a flag beats the file, the file a --recipe, a recipe the default.\n"
    )


def make_parser(name: str) -> ArgumentParser:
    """The parser of one command."""
    from jsonargparse import ArgumentParser, typing

    command = COMMANDS[name]
    parser = ArgumentParser(
        prog=f"unixkd {name}",
        description=command.summary,
        exit_on_error=False,
        allow_abbrev=False,
        epilog="--teacher NAME is short for --teacher.name NAME, and so for model, student, method and data; "
        "--epochs, --lr, --seed and --device for --train.epochs and so on."
        + (f" Methods: {', '.join(methods())}." if "method" in command.groups or name == "compare" else ""),
    )
    if command.groups:
        parser.add_argument("--config", action="config", help="YAML file with any of these options")
    if command.recipe is not None:
        parser.add_argument(
            "--recipe", type=str, help=f"published settings: {recipes.PAIRS[0].name}, ..., {recipes.IMAGENET}"
        )
    for group in command.groups:
        parser.add_class_arguments(GROUPS[group], group)
    for option, keywords in command.options:
        kind = keywords.get("type")
        kinds = {"type": getattr(typing, kind)} if isinstance(kind, str) else {}
        parser.add_argument(option, **keywords | kinds)
    parser.set_defaults(dict(command.defaults))
    return parser


def parse(name: str, arguments: Sequence[str]) -> Namespace:
    """The options of a command, groups as dataclasses; flag > YAML > recipe > default.

    Raises:
        UsageError: an option, type or name is wrong; the message offers the nearest valid one
    """
    import yaml
    from jsonargparse import ArgumentError

    parser, settings = make_parser(name), COMMANDS[name].recipe
    files, recipe, words = expand(arguments)
    try:
        configs = [read_config(path) for path in files]
        for word, following in zip_longest(words, words[1:], fillvalue=""):
            option, equals, value = word.partition("=")  # of --train FILE the parser reads the file itself
            if option.removeprefix("--") in GROUPS and Path(value if equals else following).is_file():
                read_config(value if equals else following)
        recipe = recipe or next((v["recipe"] for v in reversed(configs) if v.get("recipe")), None)
        if recipe is not None and settings is not None:
            known = {action.dest for action in parser._actions}
            parser.set_defaults({k: v for k, v in settings(str(recipe)).items() if k in known})
        if name == "distill" and has_target(words, configs):
            parser.set_defaults({"method.name": ""})  # so that one that is named is told from the default
        front = [word for values in configs for word in ("--config", yaml.safe_dump(values, sort_keys=False))]
        options = parser.instantiate(parser.parse_args([*front, *words]))
        options.given = frozenset(flatten(parser.parse_args([*front, *words], defaults=False).as_dict()))
    except UserError:
        raise
    except (ArgumentError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise explain(error, parser) from None  # all but the first: what jsonargparse lets through
    check_nulls(options)
    check_typed(options, words)
    return options


def has_target(words: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the words, or a file of options, name what the method is chosen by."""
    typed = {word.partition("=")[0] for word in words}
    return bool(typed & {"--budget", "--match-kd"}) or any(
        values.get("budget") or values.get("match_kd") for values in configs
    )


def expand(arguments: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """The --config files, which any flag beats; the recipe; and the arguments, shorthands and lists spelt out.

    >>> expand(["--teacher", "vgg13", "--config", "a.yaml", "--seeds", "0,1"])
    (['a.yaml'], None, ['--teacher.name', 'vgg13', '--seeds', '[0,1]'])
    """
    files, recipe, rest = [], None, []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        name = SHORTHANDS.get(name, name) if word.startswith("--") else name
        if name not in (*LISTS, "--config", "--recipe"):
            rest.append(f"{name}{equals}{value}")
            continue
        value = value if equals else next(words, "")
        if name == "--config":
            files.append(value)
            continue
        if name == "--recipe":
            recipe = value
        elif not value.startswith("["):
            value = f"[{value}]"
        rest += [name, value]
    return files, recipe, rest


def read_config(path: str) -> dict[str, Any]:
    """The options in a YAML file, without those that are gone.

    Raises:
        UsageError: it cannot be read, or holds something else than options
    """
    try:
        values = parse_yaml(read_text(Path(path), "YAML", named=True), f"'{path}'")
        values = {} if values is None else values  # nothing but comments
        values = without_gone(values) if isinstance(values, dict) else values
    except UserError as error:
        text = str(error).removeprefix(f"'{path}' ")
        raise UsageError(f"--config {path}: {text}") from None
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} holds no options, but {str(values)[:40]!r}")
    for group in GROUPS:
        if not isinstance(values.get(group, {}), dict):
            raise UsageError(f"--config {path}: {group} holds no options, but {values[group]!r}")
    return values


def explain(error: Exception, parser: ArgumentParser) -> UsageError:
    """A parser's complaint in a line, with the nearest valid name."""
    text = re.sub(r"typing\.|<class '(\w+)'>", r"\1", " ".join(str(error).split()))
    # Of an optional value's two complaints, the one about None helps nobody.
    text = re.sub(
        r"Does not validate .*?Errors: - (.*?) - Expected a NoneType.*value: ", r"\1. Got value: ", text
    )
    wrong, valid = "", [string for action in parser._actions for string in action.option_strings]
    valid += [short for short, full in SHORTHANDS.items() if full in valid]
    if literal := re.search(r"Literal\[(.*?)\].*Got value: (\S+)", text):
        wrong, valid = literal[2], re.findall(r"'([^']*)'", literal[1])
    elif unknown := re.search(r"unrecognized arguments: ([^\s=]+)", text):
        wrong = next((short for short, full in SHORTHANDS.items() if full == unknown[1]), unknown[1])
    elif "accept" in text:  # option 'x.y' is not accepted, group 'x' does not accept option 'y'
        wrong = "--" + ".".join(re.findall(r"'([\w.-]+)'", text))
    near = [name for name in (REFERENCE.get(wrong), SCORERS.get(wrong)) if name in valid]
    bare = {name.lstrip("-").replace("-", "_"): name for name in valid}
    bare_wrong, cutoff = wrong.lstrip("-").replace("-", "_"), 0.7 if wrong.startswith("-") else 0.5
    near += [bare[name] for name in difflib.get_close_matches(bare_wrong, bare, 1, cutoff)]
    hint = f"; did you mean {near[0]}?" if near else ""
    hint += "; a list is written [a,b]" if "Expected a List" in text else ""
    return UsageError(f"{text}{hint} (unixkd {parser.prog.split()[-1]} --help lists the options)")


def check_typed(options: Namespace, arguments: Sequence[str]) -> None:
    """Raise where a file of options, which may be anybody's, names Python to run: only who types it may."""
    words = {word.partition("=")[2] if re.match("--[^ ]+=", word) else word for word in arguments}
    for name in named_code(options):
        if name not in words:
            raise UsageError(
                f"the --config file names Python to run, {name}: name it on the command line too, if you trust it "
                f"(--{next((each for each in ('student', 'model') if each in options), 'code')} {name}, say)"
            )


def check_nulls(options: Namespace) -> None:
    """Raise where an option is null that has to have a value: a YAML file can say so, and the parser lets it."""
    for group in GROUPS:
        for field in fields(GROUPS[group]):
            value = getattr(options.get(group), field.name, field.default)
            if value is None and "None" not in str(field.type):
                raise UsageError(f"{group}.{field.name} is null, but must be {field.type}")
