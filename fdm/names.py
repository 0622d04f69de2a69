"""The names that parameters may take, apart so that checking them needs no torch."""

from typing import Literal

Framework = Literal["vp", "ve", "edm"]
Kernel = Literal["baseline", "fdm"]
Sampler = Literal["heun", "dpm-solver++"]
Architecture = Literal["ddpmpp", "ncsnpp"]
# Where FDM's published code and its derivation differ: VE's multiplier, and what tau in c_in is.
VEMultiplier = Literal["as published", "as derived"]
Tau = Literal["sigma", "time"]
