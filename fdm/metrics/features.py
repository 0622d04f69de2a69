"""Features of images, by the name of what extracts them."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdm.metrics import inception

# What the Frechet distance in a space of features is called. FID is that of Inception-v3 and of nothing else.
FRECHET = {"efficientnet-lite0": "FD(EfficientNet-Lite0)", "inception-v3-compat": "FID"}


def _efficientnet(cuda: bool) -> Any:
    from fdm.metrics import efficientnet  # and torchvision with it, which takes seconds

    return efficientnet.network(cuda)


NETWORKS = {"efficientnet-lite0": _efficientnet, "inception-v3-compat": inception.network}


@functools.lru_cache(maxsize=1)
def extractor(name: str, device: str = "cpu", _: Path | None = None) -> tuple[Callable[[Tensor], Tensor], str]:
    """A function from images, uint8 (N, 1 or 3, H, W), to features (N, d) on the CPU, and a hash of its weights.

    What comes third changes nothing: a caller names a folder, whose source stands behind results on record.
    Raises FdmError where Inception's weights cannot be had or are others, as `inception.network` does.
    """
    net = NETWORKS[name](device != "cpu")
    h = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        h.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())

    @torch.inference_mode()
    def features(images: Tensor) -> Tensor:
        colour = images.expand(-1, 3, -1, -1) if name == "inception-v3-compat" else images
        return net(colour.to(device))[0].cpu()

    return features, h.hexdigest()[:12]
