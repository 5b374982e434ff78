"""The smallest network of each task and its required parameters; a new task adds one row."""

TRUNK = {"widths": [8, 8], "blocks": 1}
PERCEPTUAL = {"widths": [8, 8, 8], "convs": [1, 1, 1]}
TINY = {
    "colorize": ("palette", {"widths": [8, 8, 8]}),
    "compress": ("codec", {"chroma": 1, "code_width": 8, "code_blocks": 1, "width": 8, "blocks": 1}),
    "denoise": ("unet", TRUNK),
    "inpaint": ("masked", TRUNK),
    "perceive": ("perceptual", PERCEPTUAL),
    "stylize": ("perceptual", PERCEPTUAL),
    "upscale": ("edsr", {"width": 8, "blocks": 1}),
    "digits": ("conv", {}),
}
TRAINED = sorted(TINY.keys() - {"digits"})
"""Objectives that a bundled architecture can be trained for."""
REQUIRED = {"inpaint": {"missing": "random"}, "stylize": {"style": ["style.png"]}}
