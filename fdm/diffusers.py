"""FDM in diffusers: EDM's schedulers with FDM's input scaling in place of theirs.

FDM changes c_in alone (arXiv 2306.06991), so a scheduler that does EDM's preconditioning samples a network of EDM-FDM
once its inputs are scaled as in the training. Use them where a pipeline takes EDMEulerScheduler or
EDMDPMSolverMultistepScheduler. `multiplier` is FDM's m, that of the training; other arguments are the parents'.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from torch import Tensor

from fdm.process.frameworks import coefficients

MULTIPLIER = 2.0


def _init(parent: type) -> Callable[..., None]:
    """The parent's __init__ with a multiplier, which its configuration keeps when it is saved."""

    def __init__(self: Any, multiplier: float = MULTIPLIER, **kwargs: Any) -> None:
        parent.__init__(self, **kwargs)  # type: ignore[misc]
        self.register_to_config(multiplier=multiplier)

    own = inspect.Parameter("multiplier", inspect.Parameter.KEYWORD_ONLY, default=MULTIPLIER)
    known = inspect.signature(parent.__init__)  # type: ignore[misc]
    # diffusers reads from it which keys of a saved configuration are arguments.
    __init__.__signature__ = known.replace(parameters=[*known.parameters.values(), own])  # type: ignore[attr-defined]
    return __init__


class _InputScaling:
    config: Any

    def precondition_inputs(self, sample: Tensor, sigma: float | Tensor) -> Tensor:
        """The network's input, c_in x of EDM-FDM.

        Parameters
        ----------
        sample : Tensor
            x, (N, C, H, W).
        sigma : float or Tensor
            Its noise level, (), above 0.

        Returns
        -------
        Tensor
            (N, C, H, W), of the type of `sample`.
        """
        level = torch.as_tensor(sigma, dtype=torch.float32, device=sample.device)
        return sample * coefficients("edm", "fdm", level, self.config.multiplier).c_in.to(sample.dtype)


class FDMEulerScheduler(_InputScaling, EDMEulerScheduler):
    """diffusers' Euler steps for a raw network F of EDM-FDM (arXiv 2306.06991).

    Parameters
    ----------
    multiplier : float
        FDM's m, above 0, as in the training (2).
    **kwargs
        As EDMEulerScheduler has them (arXiv 2206.00364).
    """

    __init__ = _init(EDMEulerScheduler)


class FDMDPMSolverMultistepScheduler(_InputScaling, EDMDPMSolverMultistepScheduler):
    """diffusers' DPM-Solver++ (multistep, arXiv 2211.01095) for a raw network F of EDM-FDM (arXiv 2306.06991).

    Parameters
    ----------
    multiplier : float
        FDM's m, above 0, as in the training (2).
    **kwargs
        As EDMDPMSolverMultistepScheduler has them (arXiv 2206.00364).
    """

    __init__ = _init(EDMDPMSolverMultistepScheduler)
