"""Where data are kept: no home folder is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unixkd.data.cache import cache_dir, cached_array
from unixkd.errors import UserError
from unixkd.names import local_path


def test_without_a_home_folder_arrays_are_made_and_downloads_ask_for_a_place(monkeypatch):
    def no_home(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("UNIXKD_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert cached_array("x", lambda: np.arange(3)).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="let UNIXKD_CACHE name a folder"):
        cache_dir()


def test_a_home_folder_that_nobody_has_is_named():
    with pytest.raises(UserError, match=r"'~nobody-has-this-name/x': .*write the path out"):
        local_path("~nobody-has-this-name/x")
