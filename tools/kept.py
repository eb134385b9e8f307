"""Where the tools keep what they fetch and build: between runs, and outside the checkout."""

import os
from pathlib import Path


def cache() -> Path:
    """Return ``$WFPIOCTL_CACHE``, else ``$XDG_CACHE_HOME/wfpioctl``, else ``~/.cache/wfpioctl``."""
    own = os.environ.get("WFPIOCTL_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(own) if own else base / "wfpioctl"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()
