"""The Inception-v3 of FID: its published weights, checked and read without unpickling, in torch-fidelity's network."""

from typing import Any
from unittest import mock

import torch

from fdm.data import downloads
from fdm.data.downloads import Archive

WEIGHTS = Archive(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    size=95_628_359,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
LAYER = "2048"  # whose features are taken, as FID is defined


def network(cuda: bool) -> Any:
    """The feature network, on the GPU if asked to.

    Its weights are taken from downloads/, or fetched into it; raises FdmError, saying what to download and where to
    put it, where they cannot be had or are not the published ones.
    """
    from torch_fidelity import feature_extractor_inceptionv3  # and torchvision with it, which takes seconds
    from torch_fidelity.utils import create_feature_extractor

    path = downloads.fetch(WEIGHTS.url, WEIGHTS.sha256, WEIGHTS.size)
    weights = torch.load(path, weights_only=True, map_location="cpu")
    # By itself torch-fidelity unpickles a file, or fetches one without a checksum. It is handed what was read here.
    with mock.patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: weights):
        return create_feature_extractor("inception-v3-compat", [LAYER], cuda=cuda, verbose=False)
