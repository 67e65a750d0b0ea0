"""`predict`: images in, class names out, in the order in which they were given."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace

from unixkd.cli.screen import say
from unixkd.cli.train import choose_threads_for, decoding_of
from unixkd.data.ahead import ahead
from unixkd.data.files import list_images
from unixkd.data.images import Pixels, detail, fit, read_photo
from unixkd.data.views import to_pixels
from unixkd.errors import UsageError, UserError
from unixkd.models.card import PixelModel
from unixkd.models.folder import load_model
from unixkd.names import phase, plural
from unixkd.training.device import default_device

PREDICT_BATCH, BATCH_PIXELS = 256, 1 << 21
"""Most images that are asked about at once, and most pixels of them: 41 images of 224 × 224."""
_WORKERS = 2

Given = tuple[str, UserError | None]
"""An image's path, and what is wrong with it so far."""
Answer = tuple[str, dict[str, float], str]
"""An image's path, its most probable classes, or what is wrong with it."""


def predict_images(options: Namespace) -> None:
    """`unixkd predict`: goes on past images that cannot be read, and then fails."""
    if options.json and options.csv:
        raise UsageError("--json and --csv exclude each other")
    model = load_model(Path(options.run), options.code).to(default_device())
    if model.card.size is None:
        raise UserError(f"{options.run}: its config.json does not say how large its training images were")
    top = max(1, min(options.top, model.card.num_classes))
    least = detail(model.card.size) if decoding_of(Path(options.run)) != "full" else None
    given, wrong = list(given_images(options.images)), []
    if not given:
        raise UserError("no images were given: standard input is empty")
    choose_threads_for(model, (model.card.size, model.card.size), len(given))
    if options.csv:
        names = [name for i in range(1, top + 1) for name in (f"class_{i}", f"probability_{i}")]
        write_csv(["image", *names, "error"])
    with phase(f"reading {plural(len(given), 'image')} and asking {model.card.name}"):
        for path, classes, error in answers(model, given, top, least):
            if error:
                wrong.append(error)
            if options.csv:
                cells = [cell for name, value in classes.items() for cell in (name, f"{value:.6f}")]
                write_csv([path, *(cells or [""] * 2 * top), error])
            elif options.json or not error:
                say(answer_line(path, classes, error, as_json=options.json))
    if wrong:
        several = [f"no answer for {len(wrong):,} of {len(given):,} images:"] if len(given) > 1 else []
        raise UserError(*several, *wrong)


def given_images(words: Iterable[str]) -> Iterator[Given]:
    """The images of files, folders, patterns such as '*.jpg', and for `-` those whose paths standard input lists."""
    for word in words:
        if word == "-":
            if sys.stdin is None:
                raise UserError("standard input is closed: there is no list of images to read")
            lines = (os.fsdecode(line).rstrip("\r\n") for line in sys.stdin.buffer)
            yield from given_images(line for line in lines if line not in ("", "-"))
            continue
        if not word:
            raise UsageError("an image's path is empty")
        found = [word] if os.path.exists(word) else sorted(glob.glob(word, recursive=True))  # noqa: PTH110, PTH207
        if not found and glob.has_magic(word):
            yield word, UserError(f"{word}: no file matches")
            continue
        for path in found or [word]:
            try:
                yield from ((str(file), None) for file in list_images([Path(path)]))
            except UserError as error:
                yield path, error


def answers(model: PixelModel, given: Sequence[Given], top: int, least: int | None) -> Iterator[Answer]:
    """What a network says of each image, in their order: its `top` classes, of at most all there are.

    Images are decoded as `read_photo` says, by threads, as many ahead as are asked about at once.
    """
    card, device = model.card, next(model.parameters()).device
    size, names = card.size or 0, card.class_names or [str(number) for number in range(card.num_classes)]

    def read(image: Given) -> Pixels | UserError:
        path, error = image
        try:
            return error or fit(read_photo(Path(path), path, card.in_channels, least).image, size)
        except UserError as found:
            return found

    count = max(1, min(PREDICT_BATCH, BATCH_PIXELS // size**2))
    parts = [given[start : start + count] for start in range(0, len(given), count)]
    for part, images in zip(parts, ahead(lambda part: list(map(read, part)), parts, _WORKERS), strict=True):
        said: Iterator[dict[str, float]] = iter(())
        if whole := [image for image in images if not isinstance(image, UserError)]:
            with torch.no_grad():
                logits = model(to_pixels(torch.from_numpy(np.stack(whole)).to(device)))
            best = torch.softmax(logits.float(), dim=1).topk(top, dim=1)
            rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            said = ({names[c]: value for c, value in zip(*row, strict=True)} for row in rows)
        for (path, _), image in zip(part, images, strict=True):
            yield (path, {}, str(image)) if isinstance(image, UserError) else (path, next(said), "")


def answer_line(path: str, classes: dict[str, float], error: str = "", *, as_json: bool) -> str:
    """One image's most probable classes and their probabilities, or in JSON what is wrong with it.

    >>> answer_line("a.png", {"cat": 0.75}, as_json=False)
    'a.png: cat 75.0 %'
    """
    if as_json:
        entries = [{"class": name, "probability": round(value, 6)} for name, value in classes.items()]
        return json.dumps({"image": path, "error": error} if error else {"image": path, "answers": entries})
    return f"{path}: " + "  ".join(f"{name} {100 * value:.1f} %" for name, value in classes.items())


def write_csv(cells: Sequence[str]) -> None:
    """A row on standard output; names are as they are but on a terminal, where they are shown as everywhere."""
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow(cells)
    if sys.stdout.isatty():  # whatever colours are forced
        say(row.getvalue().removesuffix("\n"))
    else:
        sys.stdout.write(row.getvalue())
