"""What a run will cost, worked out when it starts; plan.json keeps it, to stand beside what was charged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unixkd.batchnorm import has_statistics
from unixkd.expected import expected_images
from unixkd.forecast import Setting, questions, run_cost
from unixkd.ways import Way

if TYPE_CHECKING:
    from unixkd.train import Trainer


def plan_of_run(run: Trainer) -> dict[str, Any] | None:
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
    way = Way(parts.method.name, config.method, stored=stored, mixed=split.mixes is not None)
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
