"""Where what may be kept between runs lies: times, compiled kernels."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "NANOCHAT_CACHE_DIR"


def cache_folder() -> Path:
    """$NANOCHAT_CACHE_DIR, or `nanochat` in the user's cache folder of the platform."""
    given = os.environ.get(CACHE_VARIABLE, "")
    if given:
        return Path(given)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "nanochat"
