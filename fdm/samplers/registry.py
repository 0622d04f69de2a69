"""The registry of samplers as people ask it: fdm.samplers["ddim"]."""

import types
from collections.abc import Iterator
from typing import Any

from fdm.samplers.contract import Sampler


class Registry(types.ModuleType):
    """The module `fdm.samplers`, which gives a sampler by its name; list(fdm.samplers) are all names."""

    SAMPLERS: dict[str, Sampler]
    __path__: Any  # of a package

    def __getitem__(self, name: str) -> Sampler:
        if name not in self.SAMPLERS:
            raise KeyError(f"there is no sampler named {name}; there are: {', '.join(self.SAMPLERS)}")
        return self.SAMPLERS[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.SAMPLERS)
