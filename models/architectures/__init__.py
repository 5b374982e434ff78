"""Architectures by name. A new one is one file here and one row in this table."""

from models.architectures.chroma import ChromaUNet
from models.architectures.codec import Codec
from models.architectures.conv import Conv
from models.architectures.edsr import EDSR
from models.architectures.masked import MaskedUNet
from models.architectures.perceptual import Perceptual
from models.architectures.unet import UNet
from models.autoencoder import Autoencoder

ARCHITECTURES: dict[str, type[Autoencoder]] = {
    "chroma": ChromaUNet,
    "codec": Codec,
    "conv": Conv,
    "edsr": EDSR,
    "masked": MaskedUNet,
    "perceptual": Perceptual,
    "unet": UNet,
}
