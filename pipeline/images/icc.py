"""Convert the colours of an ICC profile to sRGB, the colour space that all tasks work in."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

PROFILE_SPACES = {"L": ("GRAY", "RGB "), "RGB": ("RGB ",), "CMYK": ("CMYK",)}
"""The colour spaces that a profile may have, by the mode of the pixels. Programs leave RGB profiles in files that
they made gray."""
MAX_PROFILE_BYTES = 10_000_000
# Like photo editors: colours inside sRGB stay as they are, and black stays black.
INTENT, FLAGS = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION


class ProfileError(Exception):
    """A profile that is damaged, or that does not fit the pixels."""


def choose_transform(profile: bytes | None, mode: str, keep: bool) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Choose how to treat the profile of an image.

    Args:
        profile: the ICC profile, or None.
        mode: of the pixels: "L", "RGB" or "CMYK".
        keep: whether to keep colours and profile as they are. CMYK becomes RGB anyway, so its profile is always applied.

    Returns:
        "none" (no profile, or the profile is sRGB), "converted", "kept" or "unreadable"; and the transform to sRGB for
        `apply_transform` if one is needed.
    """
    if not profile:
        return "none", None
    try:
        transform = build_transform(profile, mode)
    except ProfileError:
        return "unreadable", None
    if keep and mode != "CMYK":
        return "kept", None
    return "converted" if transform else "none", transform


@lru_cache(maxsize=16)
def build_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform from a profile to sRGB; None if it changes no sample by more than one.

    Gray pixels with an RGB profile are transformed as RGB (see `apply_transform`). Most images share a few profiles, so
    transforms are cached.

    Raises:
        ProfileError: if the profile is too large, damaged, or of another colour space than the pixels.
    """
    if len(profile) > MAX_PROFILE_BYTES:
        raise ProfileError(f"{len(profile) / 1e6:.0f} MB")
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space
        if space not in PROFILE_SPACES[mode]:
            raise ProfileError(f"a profile of {space} in a file of {mode}")
        input_mode = "RGB" if space == "RGB " else mode
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(opened, srgb, input_mode, "RGB", INTENT, FLAGS)
        return None if input_mode != "CMYK" and is_identity(transform) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as e:
        raise ProfileError(str(e)) from None


def is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Return whether a transform changes colours by no more than rounding.

    That is the case for the many files that are tagged as sRGB.
    """
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    is_gray = transform.input_mode == "L"
    transformed = np.asarray(transform.apply(Image.fromarray(cube[..., 0] if is_gray else cube))).astype(int)
    return bool(np.abs(transformed - (cube[..., :1] if is_gray else cube)).max() <= 1)


def apply_transform(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """Convert an image to sRGB. Gray images stay in mode "L"."""
    if image.mode == "L":
        return transform.apply(image if transform.input_mode == "L" else image.convert("RGB")).getchannel("G")
    return transform.apply(image)
