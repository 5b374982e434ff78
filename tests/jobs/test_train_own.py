"""Trainings of classes of users: what they must offer, one training without Ray, and the checkpoint that results."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagemill.jobs.train import open_run, show_training, train
from imagemill.jobs.training.checks import build_trainable_model, read_initial_weights
from imagemill.jobs.training.config import TrainConfig
from imagemill.jobs.training.network import build_network, contract_of, read_code, save_checkpoint
from imagemill.jobs.training.states import State
from imagemill.jobs.training.step import Step, TaskLoss
from imagemill.models import checkpoint as checkpoints
from imagemill.models.autoencoder import Network
from imagemill.models.errors import CheckpointError
from imagemill.models.objectives import OBJECTIVES, TASK_OBJECTIVES
from imagemill.models.precision import Precision
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.task import Sample
from imagemill.models.type_checks import require_value
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.user_code import permitted

NETS = """
import torch
from torch import nn

from imagemill.models.architectures.conv import Conv
from imagemill.models.autoencoder import Autoencoder, LatentCoder


class Denoiser(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.Conv2d(width, 3, 1))

    def forward(self, x):
        return x - self.inner(x)


class Leveled(Denoiser):
    def forward(self, x, sigma):
        return x - sigma.view(-1, 1, 1, 1) * self.inner(x)


class Restorer(Denoiser):
    def damage(self, x, generator):
        return nn.functional.avg_pool2d(x, 3, stride=1, padding=1)


class Tripler(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(3, 27, 3, padding=1)

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.inner(x), 3)


class Coder(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 4, stride=4), nn.ConvTranspose2d(4, 3, 4, stride=4)
        self.again = self.up

    def encode(self, x):
        return self.down(x)

    def decode(self, z):
        return self.up(z)


class Plain(Autoencoder):
    def __init__(self):
        super().__init__()
        self.coder = Coder()

    def encode(self, x):
        return self.coder.encode(x)

    def decode(self, y):
        return self.coder.decode(y)


class Half(Autoencoder):
    def encode(self, x):
        return x


class Unfinished(LatentCoder):
    def encode(self, x):
        return x


class OwnConv(Conv):
    pass


class Idle(Denoiser):
    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(2, 2)
"""
Own = Callable[..., TrainConfig]


@pytest.fixture
def own(tmp_path: Path, tiny: Own) -> Own:
    """Return own(task, class, key=value, …), which builds the config of a training of a class of NETS."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/my_nets.py").write_text(NETS)

    def config(task: str, name: str, **changes: Any) -> TrainConfig:
        network = {"architecture": f"my_nets:{name}", "parameters": {}, "code": str(tmp_path / "code")}
        return tiny("denoise", name="mine", **{**network, **changes}).model_copy(update={"task": task})

    return config


def permission(config: TrainConfig) -> AbstractContextManager[None]:
    return permitted(read_code(config))


@pytest.mark.parametrize(
    ("task", "name", "message"),
    [
        ("restore", "Denoiser", "the class lacks the method damage. It can be trained for denoise, upscale"),
        (
            "compress",
            "Denoiser",
            "lacks the methods encode, decode, or the base class .*LatentCoder. It can be",
        ),
        ("denoise", "Coder", "the class lacks the method forward. It can be trained for compress"),
        (
            "colorize",
            "Denoiser",
            "the class lacks the base class imagemill.models.architectures.chroma.ChromaNetwork",
        ),
        (
            "compress",
            "Unfinished",
            "the class lacks the methods decode, decode_preview, .*, dequantisation, enc",
        ),
        (
            "denoise",
            "Tripler",
            "it enlarges images to 3 times their size. It can be trained for upscale",
        ),
        ("denoise", "Idle", "the loss of denoise does not depend on the parameters module.idle.weight, module.idle.bias"),
    ],
)
def test_unsuitable_class_is_told_what_it_lacks(task: str, name: str, message: str, own: Own) -> None:
    config = own(task, name)
    with permission(config), pytest.raises(ConfigError, match=message):
        build_trainable_model(config)


def test_training_needs_permission_and_a_class(own: Own, tmp_path: Path) -> None:
    for changes, error, message in (
        (
            {"code": None},
            ConfigError,
            r"runs Python code. To allow this, set code \(--code\) to the folder",
        ),
        ({"code": str(tmp_path / "none")}, ConfigError, "is not a folder"),
        ({"architecture": "my_nets:Other"}, CheckpointError, "does not exist. Valid: Denoiser"),
        ({"architecture": "unet"}, ConfigError, "code = .*: only for an architecture MODULE:CLASS, not unet"),
        ({"parameters": {"depth": 1}}, CheckpointError, "unknown arguments: depth. The class takes .width"),
    ):
        with pytest.raises(error, match=message):
            train(own("denoise", "Denoiser", **changes))
    assert not (tmp_path / "out").exists()


def learn(config: TrainConfig, model: Network, crops: list[np.ndarray], steps: int) -> tuple[State, list[float]]:
    """Do steps on one batch; return the state and the losses."""
    OBJECTIVES[config.task].freeze(model)
    state = State.begin(model, config.ema_decay, config.weight_decay)
    step = Step(TaskLoss(config.task, model), state, Precision("cpu", torch.float32), clip_norm=1.0)
    batch = torch.from_numpy(np.stack([crop[:48, :48] for crop in crops[:4]])).permute(0, 3, 1, 2)
    # The same damage in each step.
    return state, [float(step(batch, torch.Generator().manual_seed(0), 1e-3)["loss"]) for _ in range(steps)]


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("denoise", "Denoiser"),
        pytest.param("denoise", "Leveled", marks=pytest.mark.slow),
        pytest.param("upscale", "Tripler", marks=pytest.mark.slow),
        ("restore", "Restorer"),
        pytest.param("compress", "Coder", marks=pytest.mark.slow),
        ("compress", "Plain"),
        ("compress", "OwnConv"),
    ],
)
def test_class_learns_and_becomes_a_checkpoint(
    task: str, name: str, own: Own, crops: list[np.ndarray], tmp_path: Path
) -> None:
    """The loss falls, the state survives storage, and the checkpoint gives the result of the trained network."""
    config = own(task, name, crop=48)
    objective, params = TASK_OBJECTIVES[task], TASKS[task].Params()
    with permission(config):
        torch.manual_seed(0)
        model = build_trainable_model(config)
        state, losses = learn(config, model, crops, 6)
        assert losses[-1] < losses[0]
        again = State.begin(build_network(config, contract_of(model)), config.ema_decay, config.weight_decay)
        again.load(state.to_bytes(), [{"step": state.step}])
        for key, value in model.state_dict().items():
            torch.testing.assert_close(again.model.state_dict()[key], value)
        with torch.inference_mode():
            figures = objective.validate(model.eval(), torch.rand(1, 3, 48, 48), torch.Generator().manual_seed(0))
        assert np.isfinite(figures["psnr_db"])
        objective.finish(model, iter([torch.rand(1, 3, 48, 48)]))
        url = str(tmp_path / "trained")
        card = save_checkpoint(url, config, model.requires_grad_(False), {"name": "mine", "task": task, "architecture":
            config.architecture, "parameters": config.parameters})  # fmt: skip
    assert card.route == "python"
    assert (card.contract is None) == (name == "OwnConv")
    with pytest.raises(CheckpointError, match="pass --code FOLDER"):
        checkpoints.build(*checkpoints.read(url))
    with permission(config):
        weights = read_initial_weights(config.model_copy(update={"init": url}))
        build_network(config, card.contract).load_state_dict(require_value(weights, "the weights"))
        loaded = checkpoints.build(*checkpoints.read(url))
        objective.check(loaded, params)
        results = [objective.predict(net, [Sample(crops[0])], params, Precision())[0] for net in (model, loaded)]
    for made, expected in ((results[1].image, results[0].image), (results[1].latent, results[0].latent)):
        assert (made is None) == (expected is None)
        if made is not None:
            np.testing.assert_array_equal(made, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_own_class_trains_on_ray(own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Workers import the shipped code; changed code does not resume the training."""
    config = own("denoise", "Denoiser")
    card = train(config)
    assert card.training["epochs"] == 2
    assert card.contract
    assert card.contract.halo == 1
    assert json.loads((tmp_path / "out/mine/card.json").read_text())["architecture"] == "my_nets:Denoiser"
    show_training(config.model_dump(), "test")
    next_command = f"next: imagemill denoise PHOTOS OUTPUT --checkpoint {tmp_path}/out/mine --code {tmp_path}/code"
    assert next_command in capsys.readouterr().out
    assert checkpoints.read_card(str(tmp_path / "out/mine")) == card
    (tmp_path / "code/my_nets.py").write_text(NETS + "\n")
    with pytest.raises(ConfigError, match="the code of the architecture has changed since this training began"):
        train(config)
    assert (Path(open_run(config).root) / "metrics.jsonl").exists()
