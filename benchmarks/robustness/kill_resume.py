"""A training run that is killed again and again, and resumed, against the same run left alone.

A real process trains on the digits and is killed with SIGKILL: every other time at a random moment, in between at a
random moment of saving (`kill_resume_child.py` lists them). What is there in the end (weights, moving average,
metrics, ledger, chosen samples, stored answers) must be what the run left alone has, bit for bit.
As a control, a run whose optimiser is not restored must be found out.

Target: 50 kills, identical; the control differs.

    python benchmarks/robustness/kill_resume.py             # 50 kills, some ten minutes
    python benchmarks/robustness/kill_resume.py --quick     # 6 kills; nothing is kept
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish
from kill_resume_child import MOMENTS

CHILD = Path(__file__).with_name("kill_resume_child.py")
EPOCHS_PER_KILL = 12
LONGEST = 0.3
"""Seconds from a part's first step to its kill, at most; a moment of saving is waited for twice as long."""
CLOCKS = ("seconds", "time", "train_seconds")


def start(folder: Path, **plan: Any) -> subprocess.Popen[str]:
    """A process that trains what is left of a run."""
    path = folder.with_name(f"{folder.name}.plan.json")
    path.write_text(json.dumps({"folder": str(folder), **plan}))
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish_run(folder: Path, **plan: Any) -> None:
    """Let a run come to its end."""
    process = start(folder, **plan)
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run in {folder} failed:\n{error}")


def kill_once(
    folder: Path, chance: random.Random, moment: str | None, number: int, plan: dict[str, Any]
) -> str | None:
    """Kill a part of the run; where. None: it came to its end before.

    Args:
        folder: of the run
        chance: decides when
        moment: of saving; None: at any time
        number: how many times it comes to that moment
        plan: of the run
    """
    process = start(folder, moment=moment, number=number, **plan)
    assert process.stdout is not None
    begun = process.stdout.readline()
    where = moment
    if begun:
        try:
            process.wait(chance.uniform(0, LONGEST) if moment is None else 2 * LONGEST)
        except subprocess.TimeoutExpired:  # some moments do not come any more: all answers are stored, say
            process.kill()
            where = "at a random moment"
    _, error = process.communicate()
    if process.returncode == 0:
        return None
    if process.returncode != -9:
        raise SystemExit(f"the run in {folder} failed:\n{error}")
    return where or "at a random moment"


def state(folder: Path) -> dict[str, Any]:
    """What two equal runs have in common."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = max((folder / "checkpoints").glob("epoch-*"))
    answers = folder.with_name(f"{folder.name}.answers")
    return {
        "weights": digest(folder / "model.safetensors"),
        "checkpoint": digest(last / "state.safetensors"),
        "metrics": [without_clocks(line) for line in lines],
        "summary": without_clocks(json.loads((folder / "summary.json").read_text())),
        "selection": (folder / "selection.json").read_text(),
        "answers": [digest(answers / name) for name in ("logits.bin", "checks.bin")],
    }


def without_clocks(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what a clock has measured."""
    return {key: value for key, value in record.items() if key not in CLOCKS}


def digest(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """In which parts two states differ."""
    return [name for name in ours if ours[name] != theirs[name]]


def torture(out: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill and resume; how often and where, and what differs in the end."""
    chance, where = random.Random(seed), Counter[str]()
    plan: dict[str, Any] = {"teacher": None, "epochs": 3}
    finish_run(out / "teacher", **plan)
    plan = {"teacher": str(out / "teacher"), "epochs": max(4, EPOCHS_PER_KILL * kills)}
    finish_run(out / "whole", **plan)
    moments = list(MOMENTS)
    chance.shuffle(moments)
    while sum(where.values()) < kills:
        number = sum(where.values())
        moment = moments[number // 2 % len(moments)] if number % 2 else None
        killed = kill_once(out / "parts", chance, moment, chance.randint(1, 3), plan)
        if killed is None:
            raise SystemExit(f"the run came to its end after {number} kills: it is too short")
        where[killed] += 1
    finish_run(out / "parts", **plan)
    return {"kills": dict(where), "differences": differences(state(out / "parts"), state(out / "whole"))}


def control(out: Path, seed: int) -> list[str]:
    """What differs where the optimiser is not restored after one kill."""
    plan = {"teacher": str(out / "teacher"), "epochs": 6, "forget": True}
    kill_once(out / "forgetful", random.Random(seed), "between a line and its checkpoint", 3, plan)
    finish_run(out / "forgetful", **plan)
    finish_run(out / "whole-short", **{**plan, "forget": False})
    return differences(state(out / "forgetful"), state(out / "whole-short"))


def main() -> int:
    """Torture, control, verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(np.random.SeedSequence().entropy % 2**31))  # type: ignore[operator]
    parser.add_argument("--quick", action="store_true", help="6 kills; no result file")
    options = parser.parse_args()
    kills = 6 if options.quick else options.kills
    with tempfile.TemporaryDirectory(prefix="unixkd-kills-") as name:
        out = Path(name)
        figures = torture(out, kills, options.seed)
        figures |= {"seed": options.seed, "control_differs_in": control(out, options.seed)}
    passed = not figures["differences"] and bool(figures["control_differs_in"])
    target = f"{kills} kills, identical; the control differs"
    return finish("kill_resume", figures, target=target, passed=passed, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
