"""Shared by all tests: shape checks where they are switched on, one thread, optional data."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def pytest_configure(config: pytest.Config) -> None:
    """Only where tests run: the process that deals them out to others needs no torch, which takes seconds."""
    from hypothesis import settings

    settings.register_profile("unixkd", deadline=None, max_examples=25)  # nothing is timed in the tests
    settings.load_profile("unixkd")
    keep_bytecode(config)
    if config.getoption("dist", "no") != "no":
        return
    if os.environ.get("UNIXKD_CHECK_SHAPES"):
        from jaxtyping import install_import_hook

        # Before unixkd is imported anywhere: every annotated function then checks its tensors at each call, which takes
        # a fifth of the tests' time.
        install_import_hook(modules_with_shapes(), "beartype.beartype")

    import torch

    from unixkd import names
    from unixkd.training import precision

    names.PATIENCE = float(
        "inf"
    )  # no command says what it waits for on a busy machine, but where a test wants it
    # autograd counts the devices at its first backward: now, as later a fake GPU may be there, for which it would start
    # threads, and a process with threads of autograd cannot be forked by the tests that do
    torch.zeros(1, requires_grad=True).sum().backward()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start too
    # Precision "auto" is fp32 on every processor: what a probe has timed would differ from run to run.
    precision.NATIVE = ()


def keep_bytecode(config: pytest.Config) -> None:
    """Where Python may write none beside the sources, every worker and every process that a test starts would
    compile torch anew, for seconds: pytest's cache folder keeps it.
    """
    if sys.dont_write_bytecode and hasattr(config, "cache"):
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(config.cache.mkdir("bytecode"))
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


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
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
