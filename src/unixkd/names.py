"""Words and numbers as people type and read them: names, methods with options, a run's command, figures, what is
being waited for; no torch.

Code is run when its network is built. So it has to be named by the user, on the command line or in a call: what a run
folder, a checkpoint or a file of options says about code is never run.
"""

from __future__ import annotations

import ast
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from unixkd.config import MethodConfig, ModelConfig, RunConfig, flatten, to_plain
from unixkd.errors import UsageError, UserError, unknown_name

METHODS_FILE = Path(__file__).parent / "method" / "unix.py"
MODELS_FILE = Path(__file__).parent / "models" / "registry.py"
DATA = ("digits", "cifar10", "cifar100", "folder:PATH", "parquet:PATH", "wds:PATH", "hub:ID", "stream:ID")
"""What `data.load` knows."""
IMAGENET_IMAGES = 1_281_167
"""Training images of ImageNet-1k (ILSVRC 2012)."""


def methods() -> dict[str, str]:
    """Every method by its name: what it does, the first line of its function's docstring.

    The source is read and not imported, as torch would come along: so a method stands in one place, its own.

    >>> list(methods())[:2], methods()["kd"]
    (['kd', 'unix'], 'Plain knowledge distillation: every image is answered by the teacher and trained on.')
    """
    functions = [node for node in _source(METHODS_FILE).body if isinstance(node, ast.FunctionDef)]
    summaries = {node.name: (ast.get_docstring(node) or "").partition("\n")[0] for node in functions}
    table = _table(METHODS_FILE, "METHODS")
    return {name: summaries.get(f.id, "") for name, f in table.items() if isinstance(f, ast.Name)}


def models() -> tuple[str, ...]:
    """The CIFAR family by name, read as `methods` are.

    >>> models()[:3]
    ('resnet8', 'resnet14', 'resnet20')
    """
    return tuple(_table(MODELS_FILE, "FAMILY"))


@lru_cache(maxsize=8)
def _source(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _table(file: Path, name: str) -> dict[str, ast.expr]:
    """The entries of a dictionary that a module defines under this name."""
    for node in _source(file).body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=target)], value=ast.Dict(keys=keys, values=values))
                | ast.AnnAssign(target=ast.Name(id=target), value=ast.Dict(keys=keys, values=values))
            ) if target == name:
                entries = zip(keys, values, strict=True)
                return {str(ast.literal_eval(key)): value for key, value in entries if key}
    raise LookupError(f"{file} has no table {name}")


_NAME = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


def is_code(name: str) -> bool:
    """Whether a name means a class or function in a Python file.

    >>> is_code("nets/mine.py:Net"), is_code("timm:resnet18"), is_code("mine.py")
    (True, False, False)
    """
    return _NAME.fullmatch(name) is not None


def split_code(name: str) -> tuple[Path, str]:
    """The file and the name in it, or a `UsageError` where it is no such name; nothing is read.

    >>> split_code("nets/mine.py:Net")
    (PosixPath('nets/mine.py'), 'Net')
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"'{name}' names no code: give FILE.py:NAME, a file and the class in it")
    return Path(match[1]), match[2]


def check_code(name: str) -> None:
    """Raise a `UsageError` where the name means no code, or the file is not there; it is not run."""
    file, _ = split_code(name)
    if not file.is_file():
        raise UsageError(f"there is no file '{file}' (named by '{name}')")


def check_folder(name: str) -> None:
    """Raise where `transformers:PATH_OR_ID` means a folder that is not there: what is no ORGANISATION/MODEL.

    >>> check_folder("transformers:google/vit-base-patch16-224")
    """
    path = name.partition(":")[2]
    is_path = path.startswith((".", "~", "/")) or "\\" in path or path.count("/") > 1
    if not path or (is_path and not Path(path).is_dir()):
        raise UsageError(f"'{name}': there is no folder '{path}' with a network of save_pretrained")


OPTIONS = tuple(field.name for field in fields(MethodConfig) if field.name != "name")


def parse_variant(text: str) -> MethodConfig:
    """The configuration that NAME[:OPTION=VALUE...] stands for; the name itself is not looked up.

    Raises:
        UsageError: an option is unknown or named twice, or a value has another type

    >>> parse_variant("unix:keep=0.5").keep
    0.5
    """
    name, *settings = text.split(":")
    values: dict[str, Any] = {}
    for setting in settings:
        option, equals, value = setting.partition("=")
        if not (name and option and equals and value):
            raise UsageError(f"method '{text}': options are given as in unix:keep=0.5:steepness=1000")
        if option not in OPTIONS:
            raise unknown_name(f"option of method {name}", option, OPTIONS)
        if option in values:
            raise UsageError(f"method '{text}': {option} is given twice")
        values[option] = _value(text, option, value)
    return MethodConfig(name, **values)


def parse_variants(texts: Iterable[str]) -> dict[str, MethodConfig]:
    """Configurations by their labels.

    Raises:
        UsageError: as for `parse_variant`, or two of them are the same
    """
    methods: dict[str, MethodConfig] = {}
    for text in texts:
        config = parse_variant(text)
        if (label := label_of(config)) in methods:
            raise UsageError(f"a method is named twice: {label}")
        methods[label] = config
    return methods


def label_of(config: MethodConfig) -> str:
    """The variant as one word, its options in the order in which `MethodConfig` has them.

    >>> label_of(parse_variant("unix:steepness=1e3:keep=0.50"))
    'unix:keep=0.5:steepness=1000'
    """
    values = {name: value for name in OPTIONS if (value := getattr(config, name)) is not None}
    options = [f"{name}={spelled(value).removesuffix('.0')}" for name, value in values.items()]
    return ":".join([config.name, *options])


def file_name(label: str) -> str:
    """A label as part of a file's name on any system.

    >>> file_name("kd@unix:keep=0.5:steepness=1000")
    'kd@unix,keep=0.5,steepness=1000'
    """
    return re.sub(r"[^\w.@=,+-]", "_", label.replace(":", ","))


def _value(text: str, option: str, value: str) -> object:
    """A value of the option's type."""
    kind = next(kind for kind in get_args(get_type_hints(MethodConfig)[option]) if kind is not type(None))
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise unknown_name(option, value, get_args(kind))
        return value
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise UsageError(f"method '{text}': {option} is true or false, not '{value}'")
        return value.lower() == "true"
    try:
        number: float = kind(value)
        finite = math.isfinite(number)
    except (ValueError, OverflowError):
        finite = False
    if not finite:
        whole = "a whole number" if kind is int else "a number"
        raise UsageError(f"method '{text}': {option} must be {whole}, not '{value}'")
    return number


def spelled(value: object) -> str:
    """A value as the command line reads it.

    >>> spelled([0.5, 0.25]), spelled(False), spelled(8)
    ('[0.5,0.25]', 'false', '8')
    """
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


ALWAYS_SPELLED = ("train.epochs", "train.seed")
"""Spelled out also where they are the defaults: what a run is known by."""


def local_path(text: str) -> Path:
    """A path as a user writes it; a UserError where `~` is no known home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"'{text}': {error} write the path out") from None


CHOSEN = ("train.batch_size", "train.lr")
"""Chosen where they are not spelled out, unless data have published defaults; with the rate all of the optimiser is
given."""
CHOSEN_FINE_TUNING = (*CHOSEN, "train.fit_head", "train.freeze_batchnorm", "data.crop_area")
"""The same for weights that are trained already."""


def chosen_options(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The options that `train`, `distill` and `compare` may choose for a flat run.yaml, but for the epochs."""
    role = "model" if "model.name" in config else "student"
    weights = config.get(f"{role}.pretrained") or config.get(f"{role}.weights")
    if weights or config.get(f"{role}.name") not in models():  # perhaps a folder with weights
        return CHOSEN_FINE_TUNING
    return CHOSEN if ":" in str(config.get("data.name")) else ()


def run_words(config: Mapping[str, Any], *, settled: bool = True) -> list[str]:
    """The words of `unixkd distill` or `unixkd train` that make the run of a flat run.yaml, without its defaults.

    Of a run that is `settled` the options are spelled out that another command might choose otherwise.

    >>> run_words({"model.name": "resnet8", "data.name": "digits", "train.lr": 0.1, "train.seed": 0, "label": None})
    ['unixkd', 'train', '--model', 'resnet8', '--data', 'digits', '--train.lr', '0.1', '--train.seed', '0']
    """
    alone = "model.name" in config
    defaults = flatten(to_plain(RunConfig(ModelConfig(), None if alone else ModelConfig())))
    words = ["unixkd", "train" if alone else "distill"]
    always = {*ALWAYS_SPELLED, *(chosen_options(config) if settled else ())}
    younger = {key: defaults[key] for key in chosen_options(config) if settled and key not in config}
    for key, value in {**config, **younger}.items():
        group, _, field = key.rpartition(".")
        if field == "name":
            words += [f"--{group}", spelled(value)]
        elif value is not None and (value != defaults.get(key) or key in always):
            words += [f"--{key}", spelled(value)]
    return words


NONE = "–"
"""Shown where there is no number."""


def percent(value: float | None) -> str:
    """A share as a percentage, a dash for None.

    >>> percent(0.4567), percent(None)
    ('45.67 %', '–')
    """
    return NONE if value is None else f"{100 * value:.2f} %"


def three_digits(number: float) -> str:
    """Three digits, and all those before the point; no more than four after it.

    >>> three_digits(0.01234), three_digits(12.34), three_digits(12345.6), three_digits(0.00001)
    ('0.0123', '12.3', '12,346', '<0.0001')
    """
    if 0 < number < 1e-4:
        return "<0.0001"
    return f"{number:,.0f}" if number >= 100 else f"{round(number, 4):.3g}"


def format_bytes(number: int) -> str:
    """A number of bytes.

    >>> format_bytes(2_000_000_000_000), format_bytes(1_620_000_000), format_bytes(12)
    ('2.00 TB', '1.62 GB', '12 bytes')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number} bytes"


def count(value: float, space: str = "") -> str:
    """A number of images, shortened to three figures and the prefix of the largest power of ten that fits.

    >>> count(718), count(28_740), count(1_000_000)
    ('718', '28.7k', '1.00M')
    """
    for prefix, power in zip("YZEPTGMk", range(24, 0, -3), strict=True):
        if value >= 0.9995 * 10**power:
            scaled = value / 10**power
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{space}{prefix}"
    return f"{value:.0f}{space}"


def flops(value: float) -> str:
    """Floating-point operations, with three figures.

    >>> flops(718), flops(28_740_000_000), flops(1.2e15)
    ('718 FLOPs', '28.7 GFLOPs', '1.20 PFLOPs')
    """
    return f"{count(value, ' ')}FLOPs"


def seconds(value: float) -> str:
    """A time in seconds, or in minutes or hours where it is long.

    >>> seconds(8.24), seconds(95), seconds(1000), seconds(9000)
    ('8.2 s', '95 s', '16.7 min', '2.5 h')
    """
    if value < 10:
        return f"{value:.1f} s"
    if value < 600:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def clock(value: float) -> str:
    """A time as a clock shows it.

    >>> clock(8.6), clock(83), clock(9000)
    ('0:09', '1:23', '2:30:00')
    """
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def plural(number: int, what: str) -> str:
    """A number of things.

    >>> plural(1, "run"), plural(2, "run")
    ('1 run', '2 runs')
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


# What is being waited for: work that may take a while is a phase; whoever watches reads of it after some silence.

PATIENCE = 2.5
"""Seconds without a line after which the phase at work is announced."""
LEAST = 0.25
"""Seconds that it has been at work by then: what is over in a moment is not what was waited for."""
TICK = 0.25


@dataclass(frozen=True, eq=False)
class Phase:
    """Something that is going on.

    Args:
        text: what it is, to be read on
        once: it comes again and again, and is announced the first time
        counted: steps are counted in it, and a bar shows them
        began: when, by `time.monotonic`
    """

    text: str
    once: bool = False
    counted: bool = False
    began: float = field(default_factory=lambda: time.monotonic())


class _State:
    """Of this process: its phases, the innermost last; when a line was last shown; how many live displays there are."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.spoke = time.monotonic()
        self.live = 0


_state = _State()


@contextmanager
def phase(text: str, *, once: bool = False, counted: bool = False) -> Iterator[None]:
    """Within, a piece of work that may take a while: phases lie in one another, and the innermost is what goes on.

    >>> with phase("reading digits"):
    ...     current().text
    'reading digits'
    """
    entered = Phase(text, once, counted)
    _state.phases.append(entered)
    try:
        yield
    finally:
        _state.phases.remove(entered)


def current() -> Phase | None:
    """What is going on."""
    return _state.phases[-1] if _state.phases else None


def spoke() -> None:
    """Note that a line has been shown: what is announced next is what lasts from here on."""
    _state.spoke = time.monotonic()


@contextmanager
def shown_live() -> Iterator[None]:
    """Within, a display shows the current phase by itself, and nothing is announced."""
    _state.live += 1
    try:
        yield
    finally:
        _state.live -= 1
        spoke()


def is_live() -> bool:
    """Whether a live display has the screen: nothing else may write on it."""
    return _state.live > 0


@dataclass
class Announcer:
    """Tells of phases that last, each once.

    Args:
        tell: shows a text
    """

    tell: Callable[[str], None]
    last: Phase | None = None
    told: set[str] = field(default_factory=set)

    def look(self, now: float) -> None:
        """Tell what goes on at a time, if it has been silent for long and that is news."""
        there = current()
        if there is None or there is self.last or (there.once and there.text in self.told) or is_live():
            return
        if now - _state.spoke >= PATIENCE and now - there.began >= LEAST:
            self.last = there
            self.told.add(there.text)
            _state.spoke = now
            self.tell(there.text)


@contextmanager
def announced(tell: Callable[[str], None]) -> Iterator[None]:
    """Within, phases that last are told, from a thread of its own."""
    ended, announcer = threading.Event(), Announcer(tell)
    spoke()

    def watch() -> None:
        while not ended.wait(TICK):
            announcer.look(time.monotonic())

    thread = threading.Thread(target=watch, name="unixkd-phases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
