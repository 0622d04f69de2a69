"""Features that are learned from the data themselves, as a third space beside ImageNet's and the pixels."""

import torch
from torch import Tensor


class Learned:
    """Features that a small network learns when it tells the classes of real images, uint8 (N, C, H, W), apart."""

    WIDTH = 64

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from sklearn.neural_network import MLPClassifier  # which takes a second to import

        net = MLPClassifier(self.WIDTH, max_iter=500, random_state=0, early_stopping=True)
        net.fit(_pixels(images).numpy(), labels.numpy())
        self.weight, self.bias = (torch.as_tensor(each[0]) for each in (net.coefs_, net.intercepts_))

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, 64) of images, uint8 (N, C, H, W): the units of its hidden layer."""
        return (_pixels(images) @ self.weight + self.bias).relu()


def _pixels(images: Tensor) -> Tensor:
    return images.flatten(1).double() / 255
