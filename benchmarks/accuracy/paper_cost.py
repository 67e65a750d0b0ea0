"""The published cost of all 12 teacher → student pairs, from the published F_t/F_s and from our own.

Target: the published figure from the published ratio, within 0.025 points, for every pair.

    python benchmarks/accuracy/paper_cost.py            # the same with --quick: it takes seconds
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unixkd.cli.recipes import PAIRS
from unixkd.method.flops import forward_flops
from unixkd.method.ledger import relative_cost
from unixkd.models import create_model

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish

KEEP = 48 / 64


def main() -> int:
    """Compute, print the table, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    names = sorted({name for pair in PAIRS for name in (pair.teacher, pair.student)})
    flops = {name: forward_flops(create_model(name), (3, 32, 32)) for name in names}
    rows = []
    print(
        f"{'pair':<28}{'F_t/F_s':>9}{'published':>10} | {'cost x1':>8}{'published':>10} | {'ours x1':>8}{'ours x2':>8}"
    )
    for pair in PAIRS:
        ratio = flops[pair.teacher] / flops[pair.student]
        reproduced = 100 * relative_cost(KEEP, pair.ratio, backward=1)
        ours = [100 * relative_cost(KEEP, ratio, backward) for backward in (1, 2)]
        print(
            f"{pair.teacher + ' -> ' + pair.student:<28}{ratio:>9.2f}{pair.ratio:>10.2f} | "
            f"{reproduced:>8.2f}{pair.computation:>10.2f} | {ours[0]:>8.2f}{ours[1]:>8.2f}"
        )
        rows.append(
            {
                "pair": pair.name,
                "ratio": {"measured": ratio, "published": pair.ratio},
                "cost_percent": {
                    "published": pair.computation,
                    "from_published_ratio": reproduced,
                    "from_measured_ratio": {"backward_1x": ours[0], "backward_2x": ours[1]},
                },
            }
        )
    worst = max(abs(r["cost_percent"]["published"] - r["cost_percent"]["from_published_ratio"]) for r in rows)
    figures = {"pairs": rows, "largest_difference_points": worst}
    return finish(
        "paper_cost", figures, target="largest difference <= 0.025", passed=worst <= 0.025, quick=quick
    )


if __name__ == "__main__":
    sys.exit(main())
