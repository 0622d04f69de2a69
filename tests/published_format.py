"""Pickles in the format of the published networks, written for tests."""

import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch

from fdm.model.denoiser import Denoiser
from fdm.model.unet import UNet


@pytest.fixture
def persistence(monkeypatch):
    """The modules that the published pickles name, as the original has them, to write such pickles with."""
    module = types.ModuleType("torch_utils.persistence")

    def reconstruct(meta):
        raise AssertionError("the original's function was called")

    reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = reconstruct
    util = types.ModuleType("dnnlib.util")
    util.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    for name, value in {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": module,
                        "dnnlib": types.ModuleType("dnnlib"), "dnnlib.util": util}.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, value)

    class Persistent:
        def __init__(self, class_name, state):
            self.meta = util.EasyDict(
                type="class", version=6, module_src="raise SystemExit", class_name=class_name, state=state
            )

        def __reduce__(self):
            return reconstruct, (self.meta,)

    return Persistent, util.EasyDict


SIZES = {
    "img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 10, "augment_dim": 9, "model_channels": 8,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.13,
}  # fmt: skip


def make(framework: str, kernel: str, persistence, dtype=torch.float32, channels=3, **changes):
    """A denoiser and the dictionary that the published code would pickle for it."""
    Persistent, EasyDict = persistence
    ncsnpp = framework == "ve"
    torch.manual_seed(1)
    net = UNet("ncsnpp" if ncsnpp else "ddpmpp", 8, channels, 10, 9, 8, [1, 2], 1, [4], 0.13)
    denoiser = Denoiser(net, framework, kernel, 2.0 if kernel == "fdm" else 1.0).eval()

    def tree(module, class_name, **attributes):
        children = OrderedDict()
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ModuleDict):
                children[name] = container = torch.nn.ModuleDict()
                container._modules = OrderedDict((k, tree(v, type(v).__name__)) for k, v in child.items())
            else:
                children[name] = tree(child, type(child).__name__)
        parameters = OrderedDict(
            (k, torch.nn.Parameter(v.detach().to(dtype), requires_grad=False)) for k, v in module._parameters.items()
            if v is not None
        )  # fmt: skip
        state = {"training": False, "_parameters": parameters, "_buffers": OrderedDict(module._buffers),
                 "_modules": children, **attributes}  # fmt: skip
        return Persistent(class_name, state)

    kind = {"embedding_type": "fourier", "encoder_type": "residual", "decoder_type": "standard",
            "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]} if ncsnpp else {}  # fmt: skip
    sizes = SIZES | {"in_channels": channels, "out_channels": channels}
    model = tree(net, "SongUNet", _init_args=(), _init_kwargs=EasyDict(sizes | kind), img_resolution=8)
    low, high = denoiser.sigma_range
    ema = tree(denoiser, {"baseline": "", "fdm": "FDM_"}[kernel] + framework.upper() + "Precond",
               img_resolution=8, img_channels=channels, sigma_min=np.float64(low), sigma_max=float(high),
               sigma_data=0.5, fdm_multiplier=2 if kernel == "fdm" else 1, **changes)  # fmt: skip
    ema.meta["state"]["_modules"]["model"] = model
    return denoiser, {"ema": ema, "loss_fn": Persistent("EDMLoss", {"P_mean": np.float32(-1.2)}),
                      "augment_pipe": None, "dataset_kwargs": EasyDict(path="x.zip", size=(1, 2))}  # fmt: skip
