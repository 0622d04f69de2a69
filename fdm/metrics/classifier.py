"""How many samples are what they were asked to be: a small classifier's accuracy against the class they are told."""

from typing import Any

import torch
from torch import Tensor

LIMIT = 5000  # images that it learns from: more take minutes and add a percent


class Classifier:
    """A support vector machine on pixels, fitted to real images, uint8 (N, C, H, W), and their classes (N,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from sklearn.svm import SVC  # which takes a second to import

        part = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:LIMIT]
        self.learnt = len(part)
        self.machine = SVC(C=10).fit(_pixels(images[part]), labels[part].numpy())

    def share(self, images: Tensor, labels: Tensor) -> float:
        """The share of images, uint8 (N, C, H, W), that look like their classes (N,)."""
        return float((self.machine.predict(_pixels(images)) == labels.numpy()).mean())


def _pixels(images: Tensor) -> Any:
    return images.flatten(1).double().numpy() / 255
