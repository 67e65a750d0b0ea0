"""predict.py beside an export: the class of an image without unixkd, run and compared before it is kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from jinja2 import Environment, StrictUndefined
from PIL import Image
from torch import Tensor

from unixkd.data.disk import DiskSplit
from unixkd.data.images import LONGEST, fit, read_photo, to_array
from unixkd.data.views import to_pixels
from unixkd.errors import UserError, writing
from unixkd.export.formats import FORMATS, ONNX_FILE, TORCH_FILE
from unixkd.export.int8 import INT8_FILE
from unixkd.export.photo_input import open_photo_input
from unixkd.export.preparation import Preparation
from unixkd.export.verify import IMAGES, Sample, positions
from unixkd.models.card import PixelModel
from unixkd.models.folder import SCRIPT, SCRIPT_MARK, exported_files
from unixkd.names import phase, plural
from unixkd.run_files import scratch, write

TOLERANCE = 1e-3
"""Most that a probability may differ from `unixkd predict`'s."""
STEPS = 1
"""Most of 256 steps that a pixel may be away where an ONNX model resizes."""
_FILES = {"onnx": ONNX_FILE, "int8": INT8_FILE, "torch": TORCH_FILE}
"""The file of each format that needs no unixkd, the one that the script takes by itself first."""
_BLOCKED = ("unixkd", "torchvision", "timm", "transformers")
_RUN = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))  # to import one of them is an error
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class ScriptAgreement:
    """How far a predict.py agrees with unixkd on image files.

    Args:
        images: how many it answered
        refused: how many it refused by name, as deep ones
        same_class: on how many both find the same class most probable
        largest: the largest difference of the most probable class's probability
        whose: whose answers it is compared with
    """

    images: int
    refused: int
    same_class: int
    largest: float
    whose: str = "unixkd predict"

    @property
    def within(self) -> bool:
        """Whether every class is the same and every probability within 1e-3."""
        return 0 < self.images == self.same_class and self.largest <= TOLERANCE

    def describe(self, origin: str) -> str:
        """The agreement in words, on images of this origin."""
        refused = f"; it refused {plural(self.refused, 'other image')} by name" if self.refused else ""
        return (
            f"the same class as {self.whose} on {self.same_class} of {self.images} {origin}, largest difference of a "
            f"probability {self.largest:.2g}{refused}"
        )


def scripted(formats: Sequence[str]) -> list[str]:
    """Of these formats those that a predict.py can read, the one that it takes by itself first; of one kind alone."""
    found = [name for name in _FILES if name in formats]
    return [name for name in found if name != "torch"] or found


def script_text(student: PixelModel, preparation: Preparation, first: str) -> str:
    """A predict.py that reads the file of a format."""
    page = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    template = files("unixkd.export").joinpath("predict.py.j2").read_text(encoding="utf-8")
    onnx = first != "torch"
    return page.from_string(template).render(
        mark=SCRIPT_MARK,
        packages="onnxruntime, numpy and Pillow" if onnx else "torch, numpy and Pillow",
        onnx=onnx,
        photo=onnx and preparation.takes_photos,
        file=_FILES[first],
        class_names=student.card.class_names is not None,
        made=preparation,
        longest=LONGEST,
    )


def export_script(
    student: PixelModel, out: Path, formats: Sequence[str], sample: Sample, preparation: Preparation
) -> tuple[ScriptAgreement | None, str | None]:
    """Write predict.py beside files of these formats, run it on images with each of them, delete it where it fails.

    An exact format has to give what `unixkd predict` gives, or in another size than the network's own what the student
    gives; another format what unixkd makes of that file.

    Returns: its agreement on the file that it takes by itself, None where it fails or no format needs one; and what
        is wrong with it

    Raises:
        UserError: there is a predict.py that no export wrote, or the folder cannot be written to
    """
    names, script, agreements = scripted(formats), out / SCRIPT, list[ScriptAgreement]()
    if not names:
        return None, None
    if script.exists() and script not in exported_files(out):
        raise UserError(f"{out} holds {SCRIPT}, which no export wrote: move it away")
    with writing(out), scratch(out / "photos") as folder:
        folder.mkdir()
        images = write_images(sample, folder)
        try:
            write(script, script_text(student, preparation, names[0]))
            for name in names:
                with phase(f"running {SCRIPT} on {plural(len(images), 'image')} with {_FILES[name]}"):
                    found = check(script, name, images, student, preparation)
                if isinstance(found, str) or not found.within:
                    reason = found if isinstance(found, str) else found.describe(sample.origin)
                    return None, f"{SCRIPT} disagrees on {_FILES[name]} and was deleted: {reason}"
                agreements.append(found)
        finally:
            if len(agreements) < len(names):  # whatever happened, it is not verified
                script.unlink(missing_ok=True)
    return agreements[0], None


def write_images(sample: Sample, folder: Path) -> list[Path]:
    """The sample's images as files: as they came where they are on the disk, else their pixels as PNG."""
    data, images = sample.data, []
    split = None if data is None else data.test or data.train
    if isinstance(split, DiskSplit):
        images = [split.records.encoded(i) for i in positions(len(split), IMAGES)]
    paths = [folder / f"{i}.image" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
    if not images:
        eight = (torch.cat(list(sample.batches)) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        paths = [folder / f"{i}.png" for i in range(len(eight))]
        for path, pixels in zip(paths, eight, strict=True):
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(path)
    return paths


def check(
    script: Path, name: str, images: Sequence[Path], student: PixelModel, preparation: Preparation
) -> ScriptAgreement | str:
    """Run a predict.py on a format's file and compare what it prints; or what is wrong with its run."""
    card, file = student.card, script.with_name(_FILES[name])
    done = run_without_unixkd(script, file, images)
    expect = expected(file, name, student, preparation)
    answered, same, refused, largest, place = 0, 0, 0, 0.0, 0
    for path in images:
        line = re.compile(rf"{re.escape(str(path))}\t(.*?)\t(\d\.\d+)\r?\n", re.DOTALL).match(
            done.stdout, place
        )
        if line is None:
            if f"{path}: " not in done.stderr:
                return (done.stderr.strip().splitlines() or ["it printed nothing"])[-1][:300]
            refused += 1
            continue
        place = line.end()
        probabilities = expect(path)
        if isinstance(probabilities, str):
            return probabilities
        best = int(probabilities.argmax())
        class_name = str(best) if card.class_names is None else card.class_names[best]
        answered += 1
        same += line[1] == class_name.encode("utf-8", "backslashreplace").decode()
        largest = max(largest, abs(float(line[2]) - probabilities[best].item()))
    return ScriptAgreement(answered, refused, same, largest, preparation.whose)


def run_without_unixkd(script: Path, file: Path, images: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    """Run a predict.py in a process in which unixkd, and what the file does not need, cannot be imported."""
    onnx = file.suffix == ".onnx"
    blocked = (*_BLOCKED, "torch") if onnx else _BLOCKED
    words = [sys.executable, "-P", "-c", _RUN, ",".join(blocked), str(script)]
    words += ["--model", str(file)] if onnx else []
    return subprocess.run(
        [*words, "--", *map(str, images)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"},
        check=False,
    )


def expected(
    file: Path, name: str, student: PixelModel, preparation: Preparation
) -> Callable[[Path], Tensor | str]:
    """What unixkd says of an image file: probabilities `[classes]`, or how the file resizes other than unixkd does.

    Of an exact format the student says it. Of another one the file itself does: on unixkd's pixels, or where it resizes
    on the photograph, as weights of 8 bits make more of a pixel that is one step away than 1e-3; the resizing is
    compared by itself.
    """
    exact, channels, least = FORMATS[name].exact, student.card.in_channels, preparation.least_side
    onnx = name != "torch"
    resizing = open_photo_input(file) if onnx and preparation.takes_photos else None
    classify = student if exact else FORMATS[name].open(file.parent)

    def answer(path: Path) -> Tensor | str:
        image = read_photo(path, str(path), channels, least).image
        pixels = to_pixels(torch.from_numpy(fit(image, preparation.size))[None]).contiguous()
        photo = torch.from_numpy(to_array(image))[None]
        if resizing is not None:
            steps = ((resizing(photo) - pixels).abs().max() * 255).item()
            if steps > STEPS + 0.01:
                return f"{file.name} resizes an image of {image.width} × {image.height} pixels {steps:.0f} steps off"
        with torch.no_grad():
            logits = classify(photo if resizing is not None and not exact else pixels)
        return torch.softmax(logits.float(), dim=1)[0]

    return answer
