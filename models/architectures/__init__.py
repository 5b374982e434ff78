"""Architectures by name. A new architecture needs one file here and one row in this table."""

from imagemill.models.architectures.chroma import ChromaUNet
from imagemill.models.architectures.codec import Codec
from imagemill.models.architectures.conv import Conv
from imagemill.models.architectures.edsr import EDSR
from imagemill.models.architectures.masked import MaskedUNet
from imagemill.models.architectures.palette import PaletteNet
from imagemill.models.architectures.perceptual import Perceptual
from imagemill.models.architectures.unet import UNet
from imagemill.models.autoencoder import Autoencoder

ARCHITECTURES: dict[str, type[Autoencoder]] = {
    "chroma": ChromaUNet,
    "codec": Codec,
    "conv": Conv,
    "edsr": EDSR,
    "masked": MaskedUNet,
    "palette": PaletteNet,
    "perceptual": Perceptual,
    "unet": UNet,
}
