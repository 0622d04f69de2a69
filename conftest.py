"""nbval: compare everything that a notebook shows but its stderr, where progress bars and warnings go.

Words are compared exactly, numbers with the tolerance of `fdm.study.agreement.same`: processors differ in rounding.
"""

import sys
from collections.abc import Callable
from typing import Any


def pytest_collectstart(collector: Any) -> None:
    if type(collector).__name__ == "IPyNbFile":
        collector.skip_compare = (*collector.skip_compare, "stderr")
        cell = sys.modules[type(collector).__module__].IPyNbCell
        if not hasattr(cell.compare_outputs, "tolerant"):
            cell.compare_outputs = _tolerant(cell.compare_outputs)


def _tolerant(compare: Callable[..., bool]) -> Callable[..., bool]:
    """nbval's comparison, with the text of the record where what was shown agrees with it but for rounding."""
    from fdm.study.agreement import same

    def compare_outputs(self: Any, test: list[dict], ref: list[dict], skip_compare: Any = None) -> bool:
        for new, old in zip(test, ref, strict=False):
            pairs = [
                (new, old, "text"),
                *((new.get("data", {}), old.get("data", {}), key) for key in old.get("data", {})),
            ]
            for shown, recorded, key in pairs:
                texts = shown.get(key), recorded.get(key)
                if all(isinstance(text, str) for text in texts) and same(*reversed(texts)):
                    shown[key] = recorded[key]
        return compare(self, test, ref, skip_compare)

    compare_outputs.tolerant = True  # type: ignore[attr-defined]
    return compare_outputs
