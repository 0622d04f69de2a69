"""How to walk back along dx/dsigma = (x - D(x; sigma)) / sigma. One file an algorithm, one line here."""

from collections.abc import Callable
from sys import modules

from fdm.samplers.adams import AB, IPNDM
from fdm.samplers.contract import Sampler
from fdm.samplers.ddim import DDIM
from fdm.samplers.ddpm import DDPM
from fdm.samplers.dpm_multistep import DPM_2M, DPM_3M
from fdm.samplers.dpm_solver import DPM_SOLVER_PP
from fdm.samplers.er_sde import ER_SDE
from fdm.samplers.gms import GMS
from fdm.samplers.grids import Grid, Karras, LogSNR, LogSNR32
from fdm.samplers.heun import HEUN
from fdm.samplers.keep_noise import DCW, EPSILON_SCALING
from fdm.samplers.masf import MASF
from fdm.samplers.multivariate import EM, FLOW, SSCS, CLDTime
from fdm.samplers.pndm import F_PNDM, S_PNDM
from fdm.samplers.registry import Registry
from fdm.samplers.scaled import SCALED_DPM_2M, SCALED_IPNDM
from fdm.samplers.sde_dpm import SDE_DPM_2M
from fdm.samplers.siddm import SIDDM, Ladder
from fdm.samplers.time_shift import TS_DDIM
from fdm.samplers.unipc import UNIPC
from fdm.samplers.vp_grids import VPQuadratic, VPTime

SAMPLERS: dict[str, Sampler] = {
    "heun": HEUN,
    "dpm-solver++": DPM_SOLVER_PP,
    "ddim": DDIM,
    "ddpm": DDPM,
    "s-pndm": S_PNDM,
    "f-pndm": F_PNDM,
    "ipndm": IPNDM,
    "ab": AB,
    "dpm-solver++2m": DPM_2M,
    "dpm-solver++3m": DPM_3M,
    "unipc": UNIPC,
    "ts-ddim": TS_DDIM,
    "masf": MASF,
    "epsilon-scaling": EPSILON_SCALING,
    "dcw": DCW,
    "ipndm-scaled": SCALED_IPNDM,
    "dpm-solver++2m-scaled": SCALED_DPM_2M,
    "sde-dpm-solver++2m": SDE_DPM_2M,
    "er-sde": ER_SDE,
    "gms": GMS,
    "siddm": SIDDM,
    "multivariate-em": EM,
    "multivariate-sscs": SSCS,
    "multivariate-flow": FLOW,
}

GRIDS: dict[str, Callable[..., Grid]] = {
    "karras": Karras,
    "log-snr": LogSNR,
    "log-snr-float32": LogSNR32,
    "vp-time": VPTime,
    "vp-quadratic": VPQuadratic,
    "cld-time": CLDTime,
    "ladder": Ladder,
}

modules[__name__].__class__ = Registry
