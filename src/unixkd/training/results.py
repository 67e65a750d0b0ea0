"""What a run leaves behind: plan.json when it starts; the model, summary.json and its selection when it ends."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from unixkd.data.load import Data
from unixkd.method.network import has_statistics
from unixkd.models.card import PixelModel
from unixkd.models.folder import save_model
from unixkd.planning.catalogue import Strategy
from unixkd.planning.expected import expected_images
from unixkd.planning.strategies import Setting, questions, run_cost
from unixkd.training.epoch_stats import MIXED_UNIT, EpochStats
from unixkd.training.run_folder import NUM_THUMBNAILS, thumbnail
from unixkd.training.state import Run

SCHEMA = 1


def write_results(run: Run, weights: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Write model, selection and, last, the summary whose presence says that the run is finished.

    Args:
        run: at its end
        weights: of the student's network (default: as it has them), gathered where they are sharded
    """
    with run.folder.writing():
        student = run.student
        if student.card.size is None:  # from now on it wants images as large as it was trained on
            student = PixelModel(student.net, replace(student.card, size=run.parts.data.size))
        save_model(student, run.folder.path, weights)
        if run.parts.method.selects and run.parts.data.train.lasting:
            run.folder.write_json("selection.json", selection(run.engine.tally, run.epoch, run.parts.data))
        if unanswered(run):
            list_left_out(run)
        summary = summarise(run)
        run.folder.write_json("summary.json", summary)
    return summary


def list_left_out(run: Run) -> None:
    """Leave a list of the training images that are left out, where there are any, and say so."""
    unreadable, faulty = list(run.parts.data.left_out), unanswered(run)
    if not unreadable and not faulty:
        return
    run.folder.write_json("left_out.json", {"unreadable": unreadable, "unanswered": faulty})
    text = f"{len(unreadable)} training images cannot be read and are left out"
    if faulty:
        text = (
            f"the teacher's logits are not finite for {len(faulty)} training images, left out of the losses"
        )
    run.note(f"{text}: {run.folder.path}/left_out.json")


def unanswered(run: Run) -> list[int]:
    """Numbers of the images to which the teacher's answer was not finite; images of a stream have none."""
    if not run.parts.data.train.lasting:
        return []
    return [int(i) for i in run.engine.tally.unanswered.nonzero()]


def summarise(run: Run) -> dict[str, Any]:
    """The run in figures; accuracies and costs are shares in [0, 1], FLOPs totals of the run."""
    last = run.last_record
    train = run.config.train
    return {
        "schema": SCHEMA,
        "method": run.config.label or run.parts.method.name,
        "seed": train.seed,
        "epochs": train.epochs,
        "parameters": sum(p.numel() for p in run.parts.student.parameters()),
        "accuracy": {
            "last": last["accuracy"],
            "best": run.best_accuracy,
            "teacher": run.answers and run.answers.accuracy,
        },
        "agreement": last["agreement"],
        "calibration_error": last["calibration_error"],
        "cost": {
            "images": asdict(run.total.images),
            "flops": run.total.flops(),
            "reference": {
                "epochs": run.config.reference_epochs or train.epochs,
                "images": len(run.parts.data.train),
            },
            "relative_to_kd": run.relative_cost(),
        },
        "time": {f"{name}_seconds": round(seconds, 3) for name, seconds in run.seconds.items()},
        "environment": environment(run.device, precision_of(run)) | {"processes": run.world.size},
    }


def precision_of(run: Run) -> str:
    """Both networks' precision in few words."""
    student, teacher = run.config.train.precision, run.config.train.teacher_precision
    if run.parts.teacher is None or student == teacher:
        return student
    return f"student {student}, teacher {teacher}"


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """What a figure was measured on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "torch": torch.__version__,
        "device": gpu or device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "python": platform.python_version(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
    }


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - no path to compute, only Linux has it
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def selection(tally: EpochStats, epochs: int, data: Data) -> dict[str, Any]:
    """How often the training images were kept; those kept most and least, and those mixed most strongly."""
    times, mixed = tally.times_kept.cpu(), tally.mixed.cpu()
    order, by_mixing = (torch.argsort(t, descending=True, stable=True) for t in (times, mixed))
    histogram = torch.bincount(times.long(), minlength=epochs + 1)
    chosen = {"most_kept": order, "least_kept": order.flip(0), "most_mixed": by_mixing[mixed[by_mixing] > 0]}
    return {
        "epochs": epochs,
        "histogram": {"times_kept": list(range(len(histogram))), "images": histogram.tolist()},
        **{
            name: [describe(int(i), times, mixed, data) for i in which[:NUM_THUMBNAILS]]
            for name, which in chosen.items()
        },
    }


def describe(index: int, times_kept: Tensor, mixed: Tensor, data: Data) -> dict[str, Any]:
    """One training image: where it is, what it is, how often it was kept, how much was mixed in, its picture."""
    label = None
    if data.train.labels is not None:
        number = int(data.train.labels[index])
        label = data.class_names[number] if data.class_names else str(number)
    picture = thumbnail(data.train.image(index))
    given = int(mixed[index]) / MIXED_UNIT
    return {"index": index, "label": label, "times": int(times_kept[index]), "mixed": given, "png": picture}


def plan_of_run(run: Run) -> dict[str, Any] | None:
    """Images through each forward and the cost over plain KD's, as `unixkd plan` works them out; nothing is timed.

    Exact where a method keeps a number of images that is known beforehand and the teacher's answers are not stored;
    else what is expected, from a store that is empty at first. None where no loss needs a teacher.
    """
    config, parts, teacher = run.config, run.parts, run.engine.distiller.teacher
    if parts.teacher is None or teacher is None:
        return None
    train, split, stored = config.train, parts.data.train, teacher.store is not None
    setting = Setting(
        len(split),
        train.batch_size,
        train.epochs,
        views=split.num_views,
        in_turn=split.in_turn,
        ahead=run.stepper.fill_ahead,
        bn_images=train.bn_images,
    )
    way = Strategy(parts.method.name, config.method, stored=stored, mixed=split.mixes is not None)
    asked = questions(way, setting)
    cost = run_cost(way, asked, run.ledger.emptied(), setting, has_statistics(parts.student))
    images = expected_images(parts.method, setting.sizes, train.epochs)
    images["teacher_forwarded"] -= (asked.visits - asked.forwarded) * len(split)
    share = train.epochs / (config.reference_epochs or train.epochs)
    return {
        "exact": parts.method.choice is None and not stored and run.world.size == 1,
        "images": {name: round(count) for name, count in images.items()},
        "relative_to_kd": {name: share * value for name, value in cost.items()},
    }
