"""A small convolutional classifier: its features are the space in which samples are compared."""

from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(nn.Module):
    """Maps images (B, C, H, W) in [-1, 1] to class logits (B, classes).

    The Frechet distance of two sets of images is taken between their `features` (Heusel et al.
    2017 do the same with a much larger network, made for photographs).

    Args:
        image_channels: C, 1 for grey and 3 for RGB.
        classes: number of classes.
        width: channels of the first convolution; `features` has four times as many.
    """

    def __init__(self, image_channels: int, *, classes: int = 10, width: int = 16):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(image_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
        )
        self.head = nn.Linear(4 * width, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4 * width): the last feature maps, averaged over positions."""
        return F.adaptive_avg_pool2d(self.body(x), 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, classes)."""
        return self.head(self.features(x))
