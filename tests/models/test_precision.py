"""Test number formats: the choice per device, the quality of float16, and values that overflow float16."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from imagemill.jobs.training.states import State
from imagemill.jobs.training.step import Step, TaskLoss
from imagemill.models import checkpoint
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.metrics import psnr_db
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.precision import Precision, fastest_dtype, select_dtype
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.task import Sample
from tests.support.tiny_models import REQUIRED

HALF = Precision(dtype=torch.float16)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Return a crop (64,64,3) uint8 of a real photograph."""
    return np.asarray(Image.open(str(files("skimage.data").joinpath("astronaut.png"))).convert("RGB"))[20:84, 190:254]


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [(9, torch.bfloat16), (8, torch.bfloat16), (7, torch.float16), (6, torch.float32)],
    ids=["H200", "A100", "T4 and V100", "P40"],
)
def test_fastest_dtype_of_gpus(capability, dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (capability, 5))
    assert fastest_dtype("cuda") == select_dtype("cuda", None) == dtype


def test_select_dtype_by_name() -> None:
    assert select_dtype("cuda", "float16") == torch.float16
    assert select_dtype("cpu", "bfloat16") == torch.bfloat16
    # A CPU takes 10 to 100 times as long in float16.
    assert select_dtype("cpu", "float16") == torch.float32
    assert select_dtype("cuda", "bfloat16", ("float32", "float16")) == torch.float32


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"compress", "restore"}))
def test_float16_output_is_close_to_float32(name: str, photo: np.ndarray) -> None:
    """With the bundled networks, the PSNR between float16 and float32 is over 45 dB (half a grey level: 54 dB)."""
    task, objective = TASKS[name], TASK_OBJECTIVES[name]
    card, weights = checkpoint.read(task.default_checkpoint)
    params = task.Params(**REQUIRED.get(name, {}))
    images = []
    for precision in (Precision(), HALF):
        model = objective.prepare(checkpoint.build(card, weights), params, [photo[::-1].copy()], "cpu")
        [output] = objective.predict(model, [Sample(photo.copy())], params, precision)
        images.append(output.image)
    assert psnr_db(*images) > 45


def test_float16_overflow_runs_in_float32() -> None:
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.constant_(model.weight, 300.0)
    x = torch.full((1, 4), 300.0)
    with torch.inference_mode():
        assert HALF.run(model, x).item() == 4 * 300.0 * 300.0
        # A result that is NaN in float32 too is returned unchanged.
        assert HALF.run(model, x * torch.nan).isnan().all()


def step_of(precision: Precision, photo: np.ndarray) -> tuple[Step, torch.Tensor]:
    """Return a training step of `upscale`, which uses no random numbers, and a batch (2,3,32,32) uint8."""
    torch.manual_seed(0)
    model = ARCHITECTURES["edsr"](width=8, blocks=1)
    step = Step(TaskLoss("upscale", model), State.begin(model, 0.9, 0.0), precision, 1.0)
    return step, torch.from_numpy(photo[None, :32].copy()).unflatten(2, (2, 32)).permute(2, 0, 4, 1, 3).flatten(0, 1)


def test_step_in_float16_trains_like_float32(photo: np.ndarray) -> None:
    losses = []
    for precision in (Precision(), HALF):
        step, x = step_of(precision, photo)
        # At this loss scale the gradients fit into float16, so that no update is skipped.
        step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=precision == HALF)
        figures = [step(x, torch.Generator(), 1e-3) for _ in range(10)]
        assert all(step_figures["gradient_norm"].isfinite() for step_figures in figures)
        losses.append([float(step_figures["loss"]) for step_figures in figures])
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert losses[1][-1] < losses[1][0] - 0.2


def test_step_skips_a_float16_overflow(photo: np.ndarray) -> None:
    """If the loss scale is too large, weights stay, the scale is halved and the training has not diverged."""
    step, x = step_of(HALF, photo)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    old_weights = [weight.clone() for weight in step.state.model.parameters()]
    figures = step(x, torch.Generator().manual_seed(0), 3e-3)
    assert figures["gradient_norm"].isfinite()
    assert step.scaler.get_scale() == 2.0**39
    assert all(torch.equal(*pair) for pair in zip(old_weights, step.state.model.parameters(), strict=True))


@pytest.mark.parametrize("precision", [Precision(), HALF], ids=["float32", "float16"])
def test_step_reports_divergence(precision: Precision, photo: np.ndarray) -> None:
    step, x = step_of(precision, photo)
    with torch.no_grad():
        next(step.state.model.parameters()).fill_(torch.nan)
    assert not step(x, torch.Generator().manual_seed(0), 3e-3)["gradient_norm"].isfinite()
