"""What a run leaves behind: plan.json when it starts; the model, summary.json and its selection when it ends."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unixkd.method.network import has_statistics
from unixkd.models.card import PixelModel
from unixkd.models.folder import save_model
from unixkd.names import phase
from unixkd.planning.catalogue import Strategy
from unixkd.planning.expected import Workload, expected_images
from unixkd.planning.strategies import run_cost, teacher_forwards
from unixkd.run_files import (
    SCHEMA,
    Accuracy,
    Cost,
    Flops,
    Images,
    Planned,
    PlannedCost,
    PlannedImages,
    Reference,
    RelativeCost,
    Seconds,
    Summary,
    seal,
)
from unixkd.training.head import images_to_fit
from unixkd.training.pictures import disagreements, record, selection
from unixkd.training.resume import answer_store
from unixkd.training.run_folder import SEALED
from unixkd.training.state import Run


@phase("writing the results")
def write_results(run: Run, weights: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Write model, selection, disagreements, the summary whose presence says that a run is finished, and checksums.

    `weights` are those of the student's network (default: as it has them), gathered where they are sharded.
    """
    with run.folder.writing():
        student = run.student
        if student.card.size is None:  # from now on it wants images as large as it was trained on
            student = PixelModel(student.net, replace(student.card, size=run.resolved.data.size))
        save_model(student, run.folder.path, weights)
        if run.resolved.method.selects and run.resolved.data.train.lasting:
            kept = selection(run.engine.tally, run.epoch, run.resolved.data)
            run.folder.write_json("selection.json", record(kept))
        if run.predictions is not None and run.answers is not None:
            found = disagreements(run.predictions, run.answers, run.resolved.data)
            run.folder.write_json("disagreements.json", record(found))
        if unanswered(run):
            list_left_out(run)
        summary = asdict(summarise(run))
        if summary["cost"]["shared"] is None:  # of a comparison with a store only
            del summary["cost"]["shared"]
        if summary["skipped_steps"] is None:  # in fp16 only
            del summary["skipped_steps"]
        say_skipped(run)
        run.folder.write_json("summary.json", summary)
        seal(run.folder.path, SEALED)
    return summary


def list_left_out(run: Run) -> None:
    """Leave a list of the training images that are left out, where there are any, and say so."""
    unreadable, faulty = list(run.resolved.data.left_out), unanswered(run)
    if not unreadable and not faulty:
        return
    run.folder.write_json("left_out.json", {"unreadable": unreadable, "unanswered": faulty})
    reasons = [f"{len(unreadable)} training images cannot be read and are left out"] if unreadable else []
    if faulty:
        reasons.append(
            f"the teacher's logits are not finite for {len(faulty)} training images, left out of the losses"
        )
    run.note(f"{'; '.join(reasons)}: {run.folder.path}/left_out.json")


def unanswered(run: Run) -> list[int]:
    """Numbers of the images to which the teacher's answer was not finite; images of a stream have none."""
    if not run.resolved.data.train.lasting:
        return []
    return [int(i) for i in run.engine.tally.unanswered.nonzero()]


def summarise(run: Run) -> Summary:
    """The run in figures; accuracies and costs are shares in [0, 1], FLOPs totals of the run."""
    last, train, total = run.last_record, run.config.train, run.total
    reference = Reference(
        epochs=run.config.reference_epochs or train.epochs, images=len(run.resolved.data.train)
    )
    return Summary(
        schema=SCHEMA,
        method=run.config.label or run.resolved.method.name,
        seed=train.seed,
        epochs=train.epochs,
        parameters=sum(p.numel() for p in run.resolved.student.parameters()),
        accuracy=Accuracy(
            last=last["accuracy"],
            best=run.best_accuracy,
            teacher=run.answers.accuracy if run.answers else None,
        ),
        agreement=last["agreement"],
        calibration_error=last["calibration_error"],
        cost=Cost(
            images=Images(**asdict(total.images)),
            flops=Flops(**total.flops()),
            reference=reference,
            relative_to_kd=run.relative_cost(),
            shared=shared_cost(run),
        ),
        time=Seconds(**{f"{name}_seconds": round(seconds, 3) for name, seconds in run.seconds.items()}),
        environment=environment(run),
        skipped_steps=None if run.engine.scale is None else int(run.engine.scale.skipped),
    )


def say_skipped(run: Run) -> None:
    """Say how many steps were skipped in fp16, where any were; the first ones find the scale."""
    scale = run.engine.scale
    if scale is not None and (skipped := int(scale.skipped)):
        run.note(
            f"steps skipped because their gradients overflowed in fp16: {skipped:,} of {run.engine.distiller.steps:,} "
            f"(the loss scale ended at {scale.scale.item():,.0f})"
        )


def shared_cost(run: Run) -> RelativeCost | None:
    """The part of `relative_to_kd` that answers stored by other runs have saved; None where nothing is shared."""
    store = answer_store(run)
    if store is None or store.foreign is None:
        return None
    lent = run.ledger.emptied()
    lent.charge_fill(store.lent)
    return run.over_kd(lent)


def environment(run: Run) -> dict[str, Any]:
    """What the run's figures were measured on."""
    gpu = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else None
    precision: str = run.config.train.precision
    teacher_precision = run.config.train.teacher_precision
    if run.resolved.teacher is not None and precision != teacher_precision:
        precision = f"student {precision}, teacher {teacher_precision}"
    return {
        "torch": torch.__version__,
        "device": gpu or run.device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "python": platform.python_version(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "processes": run.world.size,
    }


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def plan_of_run(run: Run) -> Planned | None:
    """Images through each forward and the cost over plain KD's, as `unixkd plan` works them out; nothing is timed.

    Exact where a method keeps a number of images that is known beforehand and the teacher's answers are not stored;
    else what is expected, from a store that is empty at first. None where no loss needs a
    teacher, or where a network's cost is not known.
    """
    config, resolved, teacher = run.config, run.resolved, run.engine.distiller.teacher
    if resolved.teacher is None or teacher is None or run.relative_cost() is None:
        return None
    train, split, stored = config.train, resolved.data.train, teacher.store is not None
    workload = Workload(
        len(split),
        train.batch_size,
        train.epochs,
        views=split.num_views,
        in_turn=split.in_turn,
        ahead=run.stepper.fill_ahead,
        bn_images=train.bn_images,
    )
    strategy = Strategy(resolved.method.name, config.method, stored=stored, mixed=split.mixes is not None)
    forwards = teacher_forwards(strategy, workload)
    refreshes = has_statistics(resolved.student) and not train.freeze_batchnorm
    cost = run_cost(strategy, forwards, run.ledger.emptied(), workload, refreshes)
    images = expected_images(resolved.method, workload.sizes, train.epochs)
    images["teacher_forwarded"] -= (forwards.needed - forwards.asked) * len(split)
    images["scored"] += (fitted := images_to_fit(run))
    of_head = run.ledger.emptied()
    of_head.charge_scoring(fitted)
    head = of_head.relative_to_kd((config.reference_epochs or train.epochs) * len(split))
    assert head is not None  # as the whole run's is
    share = train.epochs / (config.reference_epochs or train.epochs)
    return Planned(
        exact=resolved.method.choice is None and not stored and run.world.size == 1,
        images=PlannedImages(**{name: round(count) for name, count in images.items()}),
        relative_to_kd=PlannedCost(**{name: share * value + head[name] for name, value in cost.items()}),
    )
