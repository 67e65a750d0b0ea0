"""`evaluate`: how good and how fast a network is, beside its teacher; on the terminal, as JSON, as a page."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from numpy.typing import NDArray
from torch import Tensor

from unixkd.cli.evaluation_text import say_evaluation
from unixkd.cli.known_teacher import LeftOutError, teacher_of_run
from unixkd.cli.screen import progress, say
from unixkd.cli.train import choose_threads_for, evaluated_data, is_trained_on
from unixkd.config import ModelConfig
from unixkd.data.load import Data, load_data
from unixkd.data.split import Split
from unixkd.errors import UsageError, UserError
from unixkd.method.flops import forward_flops
from unixkd.models.card import PixelModel
from unixkd.models.folder import read_card
from unixkd.names import phase, plural
from unixkd.report.evaluation import NO_ANSWER, TOP, Answers, Classes, Evaluation, Judged, Quality, Speed
from unixkd.report.evaluation import compare as compare_answers
from unixkd.report.evaluation import quality as quality_of
from unixkd.report.evaluation_page import write_evaluation_page
from unixkd.report.page import check_page
from unixkd.training.device import default_device
from unixkd.training.inference_speed import time_forwards
from unixkd.training.predictions import (
    Predictions,
    calibration_curve,
    expected_calibration_error,
    predict_each,
)
from unixkd.training.resolved import build_network

_log = logging.getLogger(__name__)
BYTES = 4
"""Of a number in fp32."""


def evaluate(options: Namespace) -> None:
    """`unixkd evaluate`: quality, speed and size of a network on the evaluation split, and its teacher's."""
    html = Path(options.html) if options.html else None
    if html is not None:
        check_page(html)
    folder, device = Path(options.run), default_device()
    data = data_to_evaluate(options, folder)
    assert data.test is not None
    # An absolute path, as a folder may have a model's name; classes are checked against the data's.
    network = ModelConfig(str(folder.absolute()), code=options.code)
    models, sources = [build_network(network, data, "model").to(device)], [str(folder)]
    teacher, source, notes = find_teacher(options.teacher, folder, data)
    if teacher is not None:
        models, sources = [*models, teacher.to(device)], [*sources, source]
    choose_threads_for(models[0], data.image_shape[1:], len(data.test))
    whom = models[0].card.name if teacher is None else f"{models[0].card.name} and its teacher"
    with phase(f"evaluating {whom} on {plural(len(data.test), 'image')}"):
        predictions = predict_each(models, data.test.eval_batches(options.batch_size), device, top=TOP)
    answers = answers_of(predictions)
    judged = [judge(*each, data, options.rounds) for each in zip(models, sources, predictions, strict=True)]
    found = put_together(judged, answers, data, class_names_of(models[0]), notes)
    if options.json:
        sys.stdout.write(found.as_json() + "\n")
    else:
        say_evaluation(found)
    if html is not None:
        with phase("drawing the page"):
            lines = write_evaluation_page(found, answers, partial(show, data.test), html)
        for line in [*lines, f"Report written to {html}"]:
            (progress if options.json else say)(line)


def show(split: Split, i: int) -> tuple[NDArray[np.uint8], str]:
    """Image i as it is evaluated, and what it is called."""
    return split.image(i), split.called(i)


def data_to_evaluate(options: Namespace, folder: Path) -> Data:
    """The data that are named, or the run's own; what has to be said of them is logged.

    Raises:
        UserError: they cannot be read, or have no images to evaluate on
    """
    card = read_card(folder)
    config = evaluated_data(options.data, folder)
    named = options.data.name
    other = bool(named) and not is_trained_on(folder, named)
    try:
        data = load_data(config, card.class_names, all_to_evaluate=other)
    except UserError as error:
        if named:
            raise
        raise UserError(f"{folder / 'run.yaml'}: {error}", *error.details) from error
    for line in data.notes:
        _log.warning("%s", line)
    if data.test is None or not len(data.test):
        raise UserError(f"{data.name} has no test images; give --data.holdout to hold training images out")
    if (
        data.num_classes is None
    ):  # a teacher has to name the network's classes, whether there are labels or not
        data = replace(data, num_classes=card.num_classes, class_names=card.class_names)
    return data


def find_teacher(named: ModelConfig, folder: Path, data: Data) -> tuple[PixelModel | None, str, list[str]]:
    """The teacher that the command line names, else the run's where it may be taken; its name, what to say of it."""
    found = None
    if named.name:
        found = build_network(named, data, "teacher"), named.name
    elif named != ModelConfig():
        raise UsageError("--teacher is missing: a run folder or another network with weights")
    else:
        try:
            found = teacher_of_run(folder, data)
        except LeftOutError as why:
            return None, "", [f"The teacher that the run names is left out: {why}. --teacher names one."]
    if found is None:
        return None, "", []
    size, lines = found[0].card.size, []
    if size is not None and size > data.size:
        lines = [f"The teacher takes images of {size} pixels; those of {data.size} are enlarged for it."]
    return *found, lines


def classes_of(answers: Predictions) -> Classes:
    """The class that is named for each image `[N]`; `NO_ANSWER` where logits are not finite."""
    return torch.where(answers.confidence.isfinite(), answers.classes, NO_ANSWER).numpy()


def answers_of(predictions: Sequence[Predictions]) -> Answers:
    """What a network says, and perhaps its teacher."""
    labels, (student, *teacher) = predictions[0].labels, predictions
    said = Answers(
        None if labels is None else labels.numpy(), classes_of(student), student.confidence.numpy()
    )
    if not teacher:
        return said
    return said._replace(teacher=classes_of(teacher[0]), teacher_confidence=teacher[0].confidence.numpy())


def judge(model: PixelModel, source: str, said: Predictions, data: Data, rounds: int) -> Judged:
    """One network's figures; rounds: see `time_forwards`, 0: nothing is timed."""
    device, size = next(model.parameters()).device, data.image_shape[1:]
    speed = None
    if rounds:
        with phase(f"timing forwards of {model.card.name}"):
            timed = time_forwards(model, data.channels, size, device, rounds)
        speed = Speed(**timed._asdict(), device=device.type, precision="fp32")
    numbers = sum(t.numel() for t in model.net.state_dict().values() if is_fractional(t))
    return Judged(
        name=model.card.name,
        source=source,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        megabytes=BYTES * numbers / 1e6,
        flops=forward_flops(model, data.image_shape),
        unanswered=int((~said.confidence.isfinite()).sum()),
        quality=judge_answers(said, class_names_of(model)),
        speed=speed,
    )


def is_fractional(value: object) -> bool:
    """Whether it is a tensor of weights or statistics, and no counter."""
    return isinstance(value, Tensor) and value.is_floating_point()


def class_names_of(model: PixelModel) -> Sequence[str]:
    """The classes by their names, or by their numbers."""
    card = model.card
    return card.class_names or [str(number) for number in range(card.num_classes)]


def judge_answers(said: Predictions, names: Sequence[str]) -> Quality | None:
    """How good answers are on the images that have labels; None where none has."""
    if said.labels is None or not (known := said.labels >= 0).any():
        return None
    assert said.top is not None
    labels, confidence = said.labels[known], said.confidence[known]
    answered = confidence.isfinite()
    right = (said.classes[known] == labels)[answered]
    error, curve = None, []
    if answered.any():
        error = expected_calibration_error(confidence[answered], right)
        curve = [point._asdict() for point in calibration_curve(confidence[answered], right)]
    classes = classes_of(said)[known.numpy()]
    return quality_of(labels.numpy(), classes, said.top[known].numpy(), names, error, curve)


def put_together(
    judged: Sequence[Judged], answers: Answers, data: Data, names: Sequence[str], notes: Sequence[str]
) -> Evaluation:
    """The evaluation of a network and perhaps of its teacher."""
    student, *teacher = judged
    images, labels = len(answers.student), answers.labels
    known = np.array([], dtype=np.int64) if labels is None else labels[labels >= 0]
    absent = np.flatnonzero(np.bincount(known, minlength=len(names)) == 0).tolist()
    theirs = answers.teacher
    return Evaluation(
        data=data.name,
        data_notes=data.notes,
        images=images,
        unlabelled=images - len(known),
        class_names=list(names),
        absent=absent if len(known) else [],
        student=student,
        teacher=teacher[0] if teacher else None,
        comparison=None if theirs is None else compare_answers(answers.student, theirs, labels),
        notes=notes,
    )
