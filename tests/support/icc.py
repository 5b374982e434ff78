"""ICC profiles written by the standard, with known colour spaces, curves and inks."""

import struct

import numpy as np
from PIL import ImageCms

# Chromaticities and gammas of the standards; Display P3 has sRGB's curve, which is close enough to 2.2 for these tests.
ADOBE_RGB = np.array([[0.64, 0.33], [0.21, 0.71], [0.15, 0.06]])
DISPLAY_P3 = np.array([[0.680, 0.320], [0.265, 0.690], [0.150, 0.060]])
SRGB = np.array([[0.64, 0.33], [0.30, 0.60], [0.15, 0.06]])
D65, D50 = np.array([0.9505, 1.0, 1.0891]), np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_xyz(primaries: np.ndarray) -> np.ndarray:
    """Return the matrix (3,3) from linear RGB with white D65 to XYZ."""
    columns = np.column_stack([primaries[:, 0] / primaries[:, 1], np.ones(3), (1 - primaries.sum(1)) / primaries[:, 1]]).T
    return columns * np.linalg.solve(columns, D65)


def profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """Return an ICC profile of version 2."""
    tags = {
        b"desc": b"desc\0\0\0\0\0\0\0\5test\0".ljust(103, b"\0"),
        b"wtpt": xyz(D50),
        b"cprt": b"text\0\0\0\0none\0",
        **tags,
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    head = struct.pack(">I4sI4s4s4s", 132 + 12 * len(tags) - 4 + len(body) + 4, b"lcms", 0x02100000, kind, space, pcs)
    return (
        (head + struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp").ljust(68, b"\0")
        + xyz(D50)[8:]
        + b"\0" * 48
        + table
        + body
    )


def xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *np.round(np.asarray(values) * 65536).astype(int))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def rgb_profile(primaries: np.ndarray, curve: float = 2.19921875) -> bytes:
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ D65)) @ BRADFORD @ to_xyz(primaries)
    columns = {b"%cXYZ" % c: xyz(adapted[:, n]) for n, c in enumerate(b"rgb")}
    return profile(b"RGB ", columns | {b"%cTRC" % c: gamma(curve) for c in b"rgb"})


def gray_profile(curve: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": gamma(curve)})


def cmyk_profile() -> bytes:
    """Return a CMYK profile whose inks are darker and less pure than their complements.

    Lab of each corner, linear between.
    """
    corners = []
    for ink in np.ndindex(2, 2, 2, 2):
        light = np.prod([1 - a * b for a, b in zip(ink, (0.4, 0.5, 0.1, 0.9), strict=True)])
        a, b = -30 * ink[0] + 65 * ink[1] - 5 * ink[2], -45 * ink[0] - 5 * ink[1] + 80 * ink[2]
        corners.append((255 * light, 128 + a * (1 - ink[3]), 128 + b * (1 - ink[3])))
    line = bytes(range(256))
    table = np.clip(np.round(corners), 0, 255).astype(np.uint8).tobytes()
    unit = struct.pack(">9i", *(65536 * np.eye(3, dtype=int)).ravel())
    return profile(b"CMYK", {b"A2B0": b"mft1\0\0\0\0\4\3\2\0" + unit + 4 * line + table + 3 * line}, b"prtr", b"Lab ")


def convert_from_srgb(rgb: np.ndarray, primaries: np.ndarray, curve: float = 2.19921875) -> np.ndarray:
    """Convert sRGB (…,3) uint8 to another space by its definition, without a profile."""
    v = rgb / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    other = np.linalg.solve(to_xyz(primaries), to_xyz(SRGB) @ linear.reshape(-1, 3).T).T
    return np.round(255 * np.clip(other, 0, 1) ** (1 / curve)).astype(np.uint8).reshape(rgb.shape)


SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
