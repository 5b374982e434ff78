"""Draw the style images of the demo, so that the demo needs no painting."""

import numpy as np
from PIL import Image, ImageDraw
from scipy.spatial import KDTree

SIDE = 512
NIGHT = np.array([(18, 32, 84), (30, 62, 140), (58, 110, 180), (122, 170, 205), (232, 208, 96), (246, 236, 170)])
GLASS = np.array(
    [(178, 34, 40), (226, 122, 32), (240, 196, 60), (44, 120, 80), (32, 84, 150), (88, 50, 120), (236, 228, 208)]
)


def swirls(seed: int = 3) -> np.ndarray:
    """Draw short strokes along a field of eddies, blue to yellow; return (512,512,3) uint8."""
    rng = np.random.default_rng(seed)
    eddies = rng.uniform(0, SIDE, (7, 2))
    turns = rng.choice([-1, 1], 7)
    image = Image.new("RGB", (SIDE, SIDE), tuple(NIGHT[1]))
    draw = ImageDraw.Draw(image)
    for place in rng.uniform(-16, SIDE + 16, (9000, 2)):
        away = place - eddies
        distance = np.hypot(*away.T) + 1e-6
        pull = np.exp(-((distance / 110) ** 2))
        angle = rng.normal(0, 0.15)
        # Strokes are level far from all eddies, and run around an eddy near it.
        flow = (away[:, ::-1] * (1, -1) / distance[:, None] * (pull * turns)[:, None]).sum(0) + np.array((0.25, 0.05))
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        flow = flow / np.hypot(*flow) @ turn
        light = 0.5 + 0.5 * np.cos(distance.min() / 13) * pull.max() + rng.normal(0, 0.12) - 0.28 * (1 - pull.max())
        colour = NIGHT[int(np.clip(light, 0, 0.999) * len(NIGHT))] + rng.normal(0, 9, 3)
        ends = [tuple(place - flow * 9), tuple(place + flow * 9)]
        draw.line(ends, tuple(int(c) for c in colour.clip(0, 255)), int(rng.integers(3, 6)))
    return np.asarray(image)


def glass(seed: int = 1) -> np.ndarray:
    """Draw panes of coloured glass between lead lines; return (512,512,3) uint8."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, SIDE, (220, 2))
    colours = GLASS[rng.integers(len(GLASS), size=220)] + rng.normal(0, 12, (220, 3))
    y, x = np.mgrid[:SIDE, :SIDE]
    (near, far), which = (a.transpose(2, 0, 1) for a in KDTree(centres).query(np.stack([y, x], -1), 2))
    grain = rng.normal(0, 1, (SIDE // 4, SIDE // 4)).repeat(4, 0).repeat(4, 1)
    pane = colours[which[0]] * (0.86 + 0.008 * np.minimum(far - near, 30) + 0.03 * grain)[..., None]
    lead = (far - near < 4)[..., None]
    painted: np.ndarray = np.where(lead, 22, pane).clip(0, 255).round().astype(np.uint8)
    return painted


PAINTINGS = {"glass.png": glass, "swirls.png": swirls}
