"""Colours of a file's ICC profile as sRGB, on which the tasks work and which an untagged file is taken for."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

SPACES = {"L": ("GRAY", "RGB "), "RGB": ("RGB ",), "CMYK": ("CMYK",)}
"""What a profile may be of, by the mode of the pixels; programs leave RGB profiles in files that they made gray."""
MAX_PROFILE_BYTES = 10_000_000
# What photo editors do: colours that sRGB has stay as they are, and black stays black.
INTENT, FLAGS = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION


class ProfileError(Exception):
    """A profile that is damaged, or is not one of such pixels."""


def treatment(profile: bytes | None, mode: str, keep: bool) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """What is done about a profile of pixels in a mode ("L", "RGB" or "CMYK"), and the transform for `in_srgb` that does it.

    "none" where there is none, or it is sRGB's; "converted"; "kept"; "unreadable", and the pixels stay as they are.
    """
    if not profile:
        return "none", None
    try:
        transform = to_srgb(profile, mode)
    except ProfileError:
        return "unreadable", None
    # CMYK becomes RGB in any case, and then better by its profile.
    if keep and mode != "CMYK":
        return "kept", None
    return "converted" if transform else "none", transform


@lru_cache(maxsize=16)
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform to sRGB of pixels in a mode; None where it moves no sample by more than one.

    L with an RGB profile is transformed as RGB (`in_srgb` does both). Pictures share few profiles, so transforms are kept.

    Raises: ProfileError.
    """
    if len(profile) > MAX_PROFILE_BYTES:
        raise ProfileError(f"{len(profile) / 1e6:.0f} MB")
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space
        if space not in SPACES[mode]:
            raise ProfileError(f"a profile of {space} in a file of {mode}")
        kind = "RGB" if space == "RGB " else mode
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(opened, srgb, kind, "RGB", INTENT, FLAGS)
        return None if kind != "CMYK" and changes_nothing(transform) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as e:
        raise ProfileError(str(e)) from None


def changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether colours all over the cube stay as they are, but for rounding: most files are tagged as the sRGB they are."""
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    gray = transform.input_mode == "L"
    moved = np.asarray(transform.apply(Image.fromarray(cube[..., 0] if gray else cube))).astype(int)
    return bool(np.abs(moved - (cube[..., :1] if gray else cube)).max() <= 1)


def in_srgb(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """Pixels in the mode that `to_srgb` was asked for, as sRGB; gray ones stay "L"."""
    if image.mode == "L":
        return transform.apply(image if transform.input_mode == "L" else image.convert("RGB")).getchannel("G")
    return transform.apply(image)
