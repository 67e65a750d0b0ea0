"""What a run finds out about its networks: student and teacher on the evaluation split, BatchNorm statistics for it."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from unixkd.data.sampling import PER_PROCESS, split_among_processes
from unixkd.data.split import unmixed
from unixkd.method.batch import Batch
from unixkd.method.method import sees_clean_images
from unixkd.method.network import Network, has_statistics, is_sharded
from unixkd.models.card import PixelModel
from unixkd.names import percent, phase, plural
from unixkd.training.distributed.world import ALONE, World
from unixkd.training.precision import DTYPES
from unixkd.training.predictions import Predictions, join_predictions, predict
from unixkd.training.relabelling import displaced
from unixkd.training.state import Run

NEAR_CHANCE = 0.02
"""A teacher this little better than guessing is warned about."""
SHOWN_CLASSES = 12
"""Of those that a teacher has in another order."""


def evaluate_student(run: Run) -> Predictions | None:
    """The student on the evaluation split, where there is one."""
    started = time.perf_counter()
    with statistics_for_evaluation(run):
        predictions = answers_of(run, run.student, run.config.train.precision)
    if predictions is not None and run.world.leads:
        run.ledger.charge_evaluation(len(predictions))
    run.seconds["evaluate"] += time.perf_counter() - started
    return predictions


def remember_predictions(run: Run) -> None:
    """Keep what the student says after the last epoch; a run that was resumed after it says so again.

    That is not charged: it was when the epoch was evaluated. Every process has to call it.
    """
    if run.predictions is None and run.answers is not None:
        run.predictions = answers_of(run, run.student, run.config.train.precision)


def evaluate_teacher(run: Run) -> Predictions | None:
    """The teacher's answers on the evaluation split; its accuracy is shown before training starts."""
    if (teacher := run.resolved.asked) is None:
        return None
    started = time.perf_counter()
    if (answers := answers_of(run, teacher, run.config.train.teacher_precision)) is None:
        return None
    run.seconds["teacher"] = time.perf_counter() - started
    if run.world.leads and not run.ledger.teacher_evaluated:  # a resumed run has paid for it before
        run.ledger.charge_evaluation(len(answers), teacher=True)
    if answers.accuracy is not None:
        file = "" if teacher.weights_file is None else f" ({teacher.weights_file})"
        run.note(f"teacher {teacher.card.name}{file}: accuracy {percent(answers.accuracy)}", shared=True)
        if (
            moves := relabelling_note(answers, teacher.card.num_classes, run.resolved.data.class_names)
        ) is not None:
            run.note(moves, shared=True)
        elif answers.accuracy < 1 / teacher.card.num_classes + NEAR_CHANCE:
            run.note(
                "WARNING: the teacher is hardly better than chance on these images: are its classes in "
                "the data's order, and its mean, std and size right?",
                shared=True,
            )
    return answers


def relabelling_note(answers: Predictions, classes: int, names: Sequence[str] | None) -> str | None:
    """The warning where the teacher's outputs are clearly other classes than the data's; None where they are not."""
    assert answers.labels is not None
    moves = displaced(answers.classes, answers.labels, classes)
    if not moves:
        return None
    label = names or [str(number) for number in range(classes)]
    right = torch.tensor([moves.get(output, output) for output in range(classes)])[answers.classes]
    better = replace(answers, classes=right).accuracy
    shown = [
        f"output {output} ('{label[output]}') is class '{label[to]}'" for output, to in sorted(moves.items())
    ]
    more = f" and {len(shown) - SHOWN_CLASSES} more" if len(shown) > SHOWN_CLASSES else ""
    return (
        f"WARNING: the teacher's classes are not in the data's order: its accuracy would be {percent(better)}, not "
        f"{percent(answers.accuracy)}, if {len(moves)} outputs were other classes: "
        f"{', '.join(shown[:SHOWN_CLASSES])}{more}"
    )


def stuck_note(run: Run, answers: Predictions) -> str | None:
    """The warning where a third of the epochs, or all of them, have taught nothing; None elsewhere.

    That is an accuracy which whoever always gives the commonest class has too. Without labels the teacher's classes
    stand for them.
    """
    train, third = run.config.train, math.ceil(run.config.train.epochs / 3)
    labels = answers.labels if answers.labels is not None or run.answers is None else run.answers.classes
    if labels is None or not (third <= run.epoch < third + train.eval_every or run.epoch == train.epochs):
        return None
    known = labels >= 0
    counted = Counter(labels[known].tolist()).most_common()
    if len(counted) < 2:
        return None
    common, count = counted[0]
    right, images = int((answers.classes == labels)[known].sum()), int(known.sum())
    if right > count:
        return None
    (usual, times), *_ = Counter(answers.classes[known].tolist()).most_common()
    names = run.resolved.data.class_names or run.student.card.class_names
    always, often = (names[each] if names else str(each) for each in (common, usual))
    return (
        f"WARNING: after {run.epoch} of {train.epochs} epochs {percent(right / images)} of the answers are right, no "
        f"more than '{always}' to every image would be ({percent(count / images)}); '{often}' is the answer to "
        f"{percent(times / images)} of them. Is --lr {train.lr:g} right here, and are the epochs enough?"
    )


def answers_of(run: Run, network: PixelModel, precision: str) -> Predictions | None:
    """A network's answers on the evaluation split, each image asked about by one process."""
    test, world = run.resolved.data.test, run.world
    if test is None:
        return None
    size, dtype = run.config.train.eval_batch_size, DTYPES[precision]
    with phase(f"evaluating {network.card.name} on {plural(len(test), 'image')}", once=True):
        predictions = predict(network, test.eval_batches(size, world.rank, world.size), run.device, dtype)
    over = len(range(0, len(test), size)) % world.size  # processes with a batch more than the rest
    if is_sharded(network) and 0 < over <= world.rank:
        # Theirs needs this process's part of the weights, so it takes part with a blank image.
        predict(network, [Batch(torch.zeros(1, *run.resolved.data.image_shape), None)], run.device, dtype)
    return join_predictions(world.gather(predictions))


def statistics_for_evaluation(run: Run) -> contextlib.AbstractContextManager[None]:
    """BatchNorm's statistics on clean images, where the epoch showed none; the last ones stay and are charged."""
    train, split = run.config.train, run.resolved.data.train
    count, epoch, last = min(train.bn_images, len(split)), run.epoch - 1, run.epoch == train.epochs
    clean = split.mixes is None and sees_clean_images(run.engine.distiller.method)
    if not count or clean or train.freeze_batchnorm or not has_statistics(run.student):
        return contextlib.nullcontext()
    size, order = train.eval_batch_size, split.epoch_order(train.seed, epoch)
    together = is_synchronised(run.student)
    takes_all = not together and (run.world.leads or is_sharded(run.student))  # sharded: every process
    if together:
        least = PER_PROCESS * run.world.size  # of which every batch is a multiple
        count = max(count // least, 1) * least
        size = max(size // least, 1) * PER_PROCESS
        rows = split_among_processes(order[:count], size * run.world.size, run.world).order
    else:
        rows = order[: count if takes_all else 0]
    if takes_all or run.world.leads:
        charge = run.ledger.charge_refresh if last else run.ledger.charge_evaluation
        charge(count)
    batches = unmixed(split).train_batches(epoch, rows, size)
    return clean_statistics(run.student, batches, DTYPES[train.precision], keep=last, world=run.world)


def synchronise(student: nn.Module, world: World) -> None:
    """Let BatchNorm normalise by the images of all processes; names of weights stay what they are."""
    if world.size > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(student)


def is_synchronised(module: nn.Module) -> bool:
    """Whether a forward in train mode is one of all processes."""
    return any(isinstance(m, nn.SyncBatchNorm) for m in module.modules())


@contextlib.contextmanager
def clean_statistics(
    module: nn.Module,
    batches: Iterable[Batch],
    dtype: torch.dtype | None,
    *,
    keep: bool,
    world: World = ALONE,
) -> Iterator[None]:
    """Inside, running statistics are the plain mean over these batches; afterwards what they were, or kept.

    Args:
        module: the network, whose other buffers a forward may not change
        batches: clean images: the leader's, or where processes normalise together each one's rows
        dtype: precision by autocast
        keep: leave the new statistics in place
    """
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    device = next(module.parameters()).device
    what = phase("estimating BatchNorm's statistics on clean images", once=True)
    with what, torch.no_grad(), Network(module, dtype=dtype).autocast(device.type):
        update_bn((batch.images for batch in batches), module, device)
    world.take_from_leader(list(module.buffers()))
    try:
        yield
    finally:
        if not keep:
            for name, buffer in module.named_buffers():
                buffer.copy_(before[name])
