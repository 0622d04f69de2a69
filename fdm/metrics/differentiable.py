"""Features that a network can be trained by: of images in [-1, 1], with gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from fdm.data.datasets import Dataset
from fdm.metrics.efficientnet import EfficientNetLite0
from fdm.metrics.learned import Learned


def classifier(dataset: Dataset, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The hidden layer of a small network that tells the classes of the data set's images apart, float64 (N, 64)."""
    learned = Learned(dataset.images, dataset.labels)
    weight, bias = learned.weight.to(device), learned.bias.to(device)
    return lambda images: (((images.double() + 1) / 2).flatten(1) @ weight + bias).relu()


def efficientnet(dataset: Dataset, device: torch.device) -> Callable[[Tensor], Tensor]:
    """EfficientNet-Lite0's features, as scoring has them, float64 (N, 320)."""
    net = EfficientNetLite0("efficientnet-lite0", [EfficientNetLite0.LAYER]).to(device)
    return lambda images: net(images.float() * 127.5 + 127.5)[0].double()


FEATURES = {"classifier": classifier, "efficientnet-lite0": efficientnet}
