"""Perceive: learn features from images alone, with which the style of images can be measured.

The halves of one crop look alike and those of two crops do not (instance discrimination: Wu et al. 2018; NT-Xent loss of
SimCLR: Chen et al. 2020). Halves are compared by mean and deviation of their features, as styles are. A decoder reconstructs
the image, so that the features also contain its content.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from imagemill.models.architectures.perceptual import Perceptual
from imagemill.models.autoencoder import Network
from imagemill.models.losses import psnr_loss
from imagemill.models.objectives.objective import Objective
from imagemill.models.style_statistics import moments
from imagemill.models.type_checks import require_type, require_value

TEMPERATURE = 0.1
RECONSTRUCTION_WEIGHT = 0.1
"""Weight of a decibel of reconstruction relative to a nat of the contrastive loss."""


class Perceive(Objective):
    """Train a perceptual network without labels."""

    trainable_types = (Perceptual,)

    def freeze(self, model: Network) -> None:
        """Freeze the skips and the layers behind the code, because the decoder gets only the last layer of the code."""
        model = require_type(model, Perceptual)
        skips = require_value(model.skips, "the skips of the model")
        unused = model.layers[model.layers.index(model.first_layers[-1]) + 1 :]
        for part in (skips, *(model.encoder[name] for name in unused)):
            part.requires_grad_(False)

    def loss(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the reconstruction loss of noisy halves and the contrastive loss between the halves of all crops."""
        model = require_type(model, Perceptual)
        half = x_BCHW.shape[3] // 2 // model.stride * model.stride
        halves = torch.cat([x_BCHW[..., :half], x_BCHW[..., -half:]])
        clean = jitter_colours(halves, generator)
        noise = torch.randn(clean.shape, generator=generator) * (torch.rand(len(clean), 1, 1, 1, generator=generator) * 0.05)
        features = model.features(clean + noise, model.layers)
        image_loss = psnr_loss(model.decode([features[model.first_layers[-1]]]), clean)
        pair_loss = torch.stack([contrastive_loss(features[name]) for name in model.first_layers]).mean()
        return {
            "loss": pair_loss + RECONSTRUCTION_WEIGHT * image_loss,
            "psnr_db": -image_loss.detach(),
            "pair_loss": pair_loss.detach(),
        }

    def validate(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Measure the PSNR of the reconstruction from the last layer of the code."""
        model = require_type(model, Perceptual)
        return {"psnr_db": -float(psnr_loss(model.decode(model.encode(x_BCHW)[-1:]).clamp(0, 1), x_BCHW))}

    def preview(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images and their reconstruction from the last layer of the code."""
        model = require_type(model, Perceptual)
        return x_BCHW, model.decode(model.encode(x_BCHW)[-1:])


def jitter_colours(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Apply a random gain and gamma to each colour of each image, and turn one image in five gray.

    Without this, colours alone would suffice to match the halves.
    """
    batch = x_BCHW.shape[0]
    gamma, gain = torch.rand(2, batch, 3, 1, 1, generator=generator).unbind()
    x = (x_BCHW.clamp_min(1e-3) ** (0.6 + gamma) * (0.6 + 0.6 * gain)).clamp(0, 1)
    gray_B = (torch.rand(batch, generator=generator) < 0.2).view(-1, 1, 1, 1)
    return torch.where(gray_B, x.mean(1, keepdim=True), x)


def contrastive_loss(features_Bdhw: Tensor) -> Tensor:
    """Return the NT-Xent loss of 2B halves (first all left, then all right ones), compared by standardised moments."""
    code = torch.cat(moments(features_Bdhw), 1).flatten(1)
    code = normalize((code - code.mean(0)) / (code.std(0) + 1e-4))
    count = len(code)
    logits = (code @ code.T / TEMPERATURE).masked_fill(torch.eye(count, dtype=torch.bool, device=code.device), -torch.inf)
    partner = torch.arange(count, device=code.device).roll(count // 2)
    return cross_entropy(logits, partner)
