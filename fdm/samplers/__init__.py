"""How to walk back along dx/dsigma = (x - D(x; sigma)) / sigma. One file an algorithm, one line here."""

from fdm.samplers.contract import Sampler
from fdm.samplers.ddim import DDIM
from fdm.samplers.dpm_solver import DPM_SOLVER_PP
from fdm.samplers.heun import HEUN
from fdm.samplers.pndm import F_PNDM, S_PNDM

SAMPLERS: dict[str, Sampler] = {
    "heun": HEUN,
    "dpm-solver++": DPM_SOLVER_PP,
    "ddim": DDIM,
    "s-pndm": S_PNDM,
    "f-pndm": F_PNDM,
}
