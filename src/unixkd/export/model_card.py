"""The model card: README.md in the format of the Hugging Face Hub, written by the template beside this file."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from unixkd.config import flatten, read_yaml
from unixkd.errors import UserError, check_unchanged, read_json, shown, writing
from unixkd.export.export import Artefact
from unixkd.export.formats import OF_ONNX
from unixkd.export.preparation import Preparation
from unixkd.export.script import ScriptAgreement
from unixkd.export.verify import ATOL, RTOL
from unixkd.models.card import PixelModel
from unixkd.models.folder import read_card
from unixkd.names import is_code, run_words
from unixkd.run_files import write


@dataclass(frozen=True)
class Publication:
    """What only its author knows: licences of weights and data, OWNER/NAME on the Hub; None: not stated."""

    licence: str | None = None
    data_licence: str | None = None
    repository: str | None = None


def write_model_card(
    out: Path,
    student: PixelModel,
    facts: Facts,
    artefacts: Sequence[Artefact],
    publication: Publication,
    checked_on: str,
    preparation: Preparation,
    script: ScriptAgreement | None = None,
) -> Path:
    """Write README.md beside the artefacts in `out`; what the run does not know has no line.

    `checked_on` says on which images they were verified, `script` how far predict.py agrees, None where there is none.
    """
    path = out / "README.md"
    page = Environment(
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, finalize=_shown
    )
    page.filters |= {"code": code, "words": words, "quoted": lambda text: shlex.quote(shown(text))}
    template = files("unixkd.export").joinpath("model_card.md.j2").read_text(encoding="utf-8")
    text = page.from_string(template).render(
        name=public_name(student.card.name),
        has_code=is_code(student.card.name),  # which does not travel with the weights
        card=student.card,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        facts=facts,
        artefacts=artefacts,
        publication=publication,
        folder=out.resolve().name,
        checked_on=checked_on,
        size=preparation.size,
        preparation=preparation,
        script=script,
        of_onnx=list(OF_ONNX),
        atol=f"{ATOL:g}",
        rtol=f"{RTOL:g}",
    )
    with writing(out):
        write(path, text)
    return path


def _shown(value: object) -> object:
    return shown(value) if isinstance(value, str) else value


def code(text: str) -> str:
    """A name as Markdown's code, whatever it holds.

    >>> print(code("wrn_16_2"), code("a`|<b>"))
    `wrn_16_2` `` a`|<b> ``
    """
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def words(text: str) -> str:
    """A name within Markdown's text: nothing in it is markup.

    >>> print(words("wrn_16_2 [a](b) <i>"))
    wrn_16_2 \\[a\\](b) \\<i\\>
    """
    return re.sub(r"[\\`*\[\]<>&|~#$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


_FOLDERS = re.compile(r"(^|:)(?:[A-Za-z]:|~[^/\\:]*)?(?!//)[/\\](?:[^:]*[/\\])?(?=[^/\\:])")


def public_name(name: str) -> str:
    """A name without the folders of this machine.

    >>> public_name("/home/me/nets.py:Net"), public_name("folder:~/photos/"), public_name("hub:me/photos")
    ('nets.py:Net', 'folder:photos/', 'hub:me/photos')
    """
    prefix, _, place = name.rpartition(":")
    return f"{Path(prefix).name}:{place}" if is_code(name) else _FOLDERS.sub(r"\1", name)


@dataclass(frozen=True)
class Facts:
    """What a run folder says, keys dotted: `summary["accuracy.last"]`, `config["data.name"]`."""

    summary: dict[str, Any]
    config: dict[str, Any]

    def number(self, key: str) -> float | None:
        """A number of the summary; None where it has none, or nan."""
        value = self.summary.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return value if math.isfinite(value) else None

    @property
    def data(self) -> str | None:
        """The data's name; of a folder or file the last part of its path."""
        kind, _, place = str(self.config.get("data.name") or "").partition(":")
        return (
            Path(place).name if kind in ("folder", "parquet", "wds") else public_name(place or kind)
        ) or None

    @property
    def hub_data(self) -> str | None:
        """The data's name on the Hub, where they are from there."""
        match = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)", str(self.config.get("data.name")))
        return match[1] if match and not Path(match[1]).exists() else None

    @property
    def split(self) -> str:
        """The images that the accuracy was measured on, in words."""
        holdout = self.config.get("data.holdout")
        if holdout and self.config.get("data.evaluate_on") != "test":
            return f"{100 * holdout:g} % of the training images, held out from training"
        return "the test images"

    @property
    def teacher(self) -> str | None:
        """The teacher's architecture, or where it cannot be looked up the last part of its name."""
        name = self.config.get("teacher.name")
        if not name or self.config.get("method.name") == "student-alone":
            return None
        try:
            return public_name(read_card(name).name)
        except UserError:  # no run folder, or not here
            return Path(name).name

    @property
    def command(self) -> str:
        """The command that makes the run again, with the options that are not their defaults and no folders of here."""
        return shlex.join(map(public_name, run_words(self.config)))


def read_facts(folder: Path) -> Facts:
    """The facts of a run folder; what it lacks stays empty, a damaged or edited file is a `UserError`."""
    summary, config = folder / "summary.json", folder / "run.yaml"
    for path in (summary, config):
        check_unchanged(path)
    return Facts(
        flatten(read_json(summary) if summary.exists() else {}),
        flatten(read_yaml(config) if config.exists() else {}),
    )
