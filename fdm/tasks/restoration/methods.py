"""The methods that restore images from measurements of them: one file each, and one line here."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fdm.samplers import GRIDS, SAMPLERS
from fdm.samplers.contract import Options, check_options
from fdm.tasks.restoration import ccdf, dossr, posterior

WALKED = tuple(name for name in SAMPLERS if name != "gms")  # which asks for moments besides D


class Restorer(NamedTuple):
    """An entry of the registry.

    `restore(denoiser, measurement, nfe, seeds, **options)` gives restorations, float64 (N, C, H, W), in `nfe`
    evaluations; all that is random is by `seeds`. It raises ValueError for a number that it cannot make.
    """

    label: str  # for tables and figures
    restore: Callable[..., Tensor]
    # What may be varied, by name: the lowest and the highest number, or the words that it may be.
    options: Options
    conditional: bool | None  # whether its denoiser is given the estimate; None for either
    shifted: bool = False  # whether that is one for a shift

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError for an option that the method does not have, or a value outside of its range."""
        own, others = dict[str, Any](), dict[str, Any]()
        for name, value in options.items():
            (own if name in self.options else others)[name] = value
        if "sampler" in self.options:  # whose options the others are
            check_options(self.label, self.options, own)
            SAMPLERS[own.get("sampler", ccdf.SAMPLER)].check(others)
        else:
            check_options(self.label, self.options, options)


def possible(method: str, nfe: int, options: Mapping[str, Any]) -> bool:
    """Whether a method can restore in that many evaluations, ending without noise."""
    if method != "ccdf":
        return nfe > 1 or method != "diffpir"  # whose schedule has two levels or more
    try:
        SAMPLERS[options.get("sampler", ccdf.SAMPLER)].steps(nfe, True)
    except ValueError:
        return False
    return True


RESTORERS: dict[str, Restorer] = {
    "ccdf": Restorer(
        "CCDF", ccdf.restore,
        {"sigma_0": (0.01, 80.0), "sampler": WALKED, "grid": tuple(GRIDS), "data": ccdf.DATA}, None,
    ),
    "dps": Restorer("DPS", posterior.dps, {"weight": (0.0, 1e4)}, False),
    "diffpir": Restorer("DiffPIR", posterior.diffpir, {"lambda_": (0.0, 1e4), "zeta": (0.0, 1.0)}, False),
    "dossr": Restorer("DoSSR", dossr.restore, {"order": (1, 3), "slope": ("published", "at s")}, True, shifted=True),
}  # fmt: skip
