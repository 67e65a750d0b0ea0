"""Shared by all tests: shape checks switched on, one thread, optional data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

SOURCE = Path(__file__).parents[1] / "src"


def modules_with_shapes() -> list[str]:
    """Modules that state tensor shapes. The others have nothing to check, and beartype cannot read some
    of them: `Self` outside a decorated class, names imported for type checking only.
    """
    return [
        ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for path in sorted(SOURCE.rglob("*.py"))
        if "from jaxtyping import" in path.read_text()
    ]


# Before unixkd is imported anywhere: every annotated function then checks its tensors at each call.
install_import_hook(modules_with_shapes(), "beartype.beartype")

from unixkd.training import precision  # noqa: E402

torch.set_num_threads(1)

# Precision "auto" is fp32 on every processor: what a probe has timed would differ from run to run.
precision.NATIVE = ()

settings.register_profile("unixkd", deadline=None, max_examples=50)  # nothing is timed in the tests
settings.load_profile("unixkd")


@pytest.fixture
def cifar100() -> Path:
    """Folder of the CIFAR-100 data set; the test is skipped where there is none."""
    root = os.environ.get("UNIXKD_CIFAR100")
    if not root:
        pytest.skip("set UNIXKD_CIFAR100 to a folder with CIFAR-100")
    return Path(root)


@pytest.fixture
def double() -> Iterator[None]:
    """float64 by default, to compare with figures worked out in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
