"""nbval: compare everything that a notebook shows but its stderr, where progress bars and warnings go."""

from typing import Any


def pytest_collectstart(collector: Any) -> None:
    if type(collector).__name__ == "IPyNbFile":
        collector.skip_compare = (*collector.skip_compare, "stderr")
