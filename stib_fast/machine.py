"""What the machine is called that figures were measured on."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def cpu_name() -> str:
    """Name of the processor, as the system tells it.

    Examples
    --------
    >>> cpu_name() != ""
    True
    """
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    named = re.search(r"model name\s*: (.+)", text)
    if named is None:
        return platform.processor() or platform.machine()
    # Virtual machines hide the name: the family and model say which generation it is.
    numbers = [re.search(rf"{key}\s*: (\d+)", text) for key in ("cpu family", "model")]
    detail = ", ".join(
        f"{key} {found.group(1)}"
        for key, found in zip(("family", "model"), numbers, strict=True)
        if found
    )
    return f"{named.group(1).strip()} ({detail})"
