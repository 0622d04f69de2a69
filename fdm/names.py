"""The names that parameters may take, apart so that checking them needs no torch."""

from typing import Literal

Framework = Literal["vp", "ve", "edm"]
Kernel = Literal["baseline", "fdm"]
Sampler = Literal["heun", "dpm-solver++"]
Architecture = Literal["ddpmpp", "ncsnpp"]
