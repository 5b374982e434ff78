"""Perceive: what a network learns by itself of how pictures are painted, so that style can be measured with it.

The halves of one crop look alike and those of two crops do not (instance discrimination: Wu et al. 2018; the loss of SimCLR,
Chen et al. 2020), judged by the mean and deviation of the features alone, as style is. The decoder gives the picture back,
so that the features hold its content.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from imagemill.models.architectures.perceptual import Perceptual
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.losses import psnr_loss
from imagemill.models.objectives.objective import Objective
from imagemill.models.style_statistics import moments
from imagemill.models.type_checks import require_type, require_value

TEMPERATURE = 0.1
RECONSTRUCTION_WEIGHT = 0.1
"""Of a decibel beside a nat."""


class Perceive(Objective):
    trainable_type = Perceptual

    def freeze(self, model: Autoencoder) -> None:
        """The skips, as the decoder is given one layer alone, and the layers behind that one."""
        model = require_type(model, Perceptual)
        skips = require_value(model.skips, "the skips of the model")
        behind = model.layers[model.layers.index(model.first_layers[-1]) + 1 :]
        for part in (skips, *(model.encoder[name] for name in behind)):
            part.requires_grad_(False)

    def loss(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Reconstruction of distorted halves, and how surely each finds its other half."""
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

    def validate(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Reconstruction."""
        model = require_type(model, Perceptual)
        return {"psnr_db": -float(psnr_loss(model.decode(model.encode(x_BCHW)[-1:]).clamp(0, 1), x_BCHW))}

    def sample(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The picture from its last layer alone."""
        model = require_type(model, Perceptual)
        return x_BCHW, model.decode(model.encode(x_BCHW)[-1:])


def jitter_colours(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with other gains and another gamma for each colour; one in five gray: colours alone tell too much."""
    batch = x_BCHW.shape[0]
    gamma, gain = torch.rand(2, batch, 3, 1, 1, generator=generator).unbind()
    x = (x_BCHW.clamp_min(1e-3) ** (0.6 + gamma) * (0.6 + 0.6 * gain)).clamp(0, 1)
    gray_B = (torch.rand(batch, generator=generator) < 0.2).view(-1, 1, 1, 1)
    return torch.where(gray_B, x.mean(1, keepdim=True), x)


def contrastive_loss(features_Bdhw: Tensor) -> Tensor:
    """Cross entropy with which each of 2B halves finds its other half among all, by standardised moments (NT-Xent)."""
    code = torch.cat(moments(features_Bdhw), 1).flatten(1)
    code = normalize((code - code.mean(0)) / (code.std(0) + 1e-4))
    count = len(code)
    alike = (code @ code.T / TEMPERATURE).masked_fill(torch.eye(count, dtype=torch.bool, device=code.device), -torch.inf)
    other = torch.arange(count, device=code.device).roll(count // 2)
    return cross_entropy(alike, other)
