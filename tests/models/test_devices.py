"""Test GPU code without a GPU: fake tensors on `cuda` have shapes and dtypes but no content.

torch raises when an operation mixes devices, like on a GPU. `FakeCuda` checks the failures that only a GPU would show:
`numpy()` of a tensor on the GPU, and random numbers on one device from a generator of another device.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from imagemill.jobs.training.states import State
from imagemill.jobs.training.step import Step, TaskLoss
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.autoencoder import Network
from imagemill.models.objectives import OBJECTIVES, TASK_OBJECTIVES
from imagemill.models.precision import Precision
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.task import Sample
from tests.support.tiny_models import REQUIRED, TINY, TRAINED

CUDA = torch.device("cuda", 0)
HALF = [torch.bfloat16, torch.float16]
SIZE = 64


class CudaGenerator(torch.Generator):
    """A CPU generator that reports the GPU as its device."""

    @property
    def device(self) -> torch.device:
        return CUDA


class FakeCuda(TorchFunctionMode):
    """Give fake tensors content (numbers are 1, arrays are ones) and record the dtypes of convolutions."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self.convolved: set[torch.dtype] = set()
        self.parameters: list[torch.nn.Parameter] = []
        """Parameters that get a gradient, because torch cannot run backward on a GPU that does not exist."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        if func is torch.autograd.grad:
            return tuple(torch.empty_like(each) for each in args[1])
        if isinstance(first, FakeTensor):
            if name == "numpy":
                if first.device.type != "cpu":
                    raise TypeError(f"numpy() of a tensor on {first.device}")
                return np.ones(first.shape, str(first.dtype).removeprefix("torch."))
            if name in ("item", "__float__", "__int__", "__bool__", "__index__"):
                return {"__int__": int, "__index__": int, "__bool__": bool}.get(name, float)(1)
            if name == "tolist":
                return np.ones(first.shape).tolist()
            if name == "backward":
                for parameter in self.parameters:
                    parameter.grad = torch.empty_like(parameter)
                return None
        generator = kwargs.pop("generator", None)
        if generator is not None:
            target_device = torch.device(kwargs.get("device") or "cpu")
            if target_device.type != generator.device.type:
                raise RuntimeError(f"{name} on {target_device} with a generator on {generator.device}")
        result = func(*args, **kwargs)
        if name in ("conv2d", "conv_transpose2d"):
            self.convolved.add(result.dtype)
        return result


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Simulate a GPU on a machine without one."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.amp.grad_scaler.amp_definitely_not_available", lambda: False, raising=False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    mode = FakeCuda(fake)
    with fake, mode:
        yield mode


def on_cuda(architecture: str, parameters: dict[str, Any]) -> Network:
    with CUDA:
        return ARCHITECTURES[architecture](**parameters).eval()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", sorted(set(TASKS) - {"restore"}))
def test_predict_stays_on_its_device(name: str, dtype: torch.dtype, cuda: FakeCuda) -> None:
    """Predictions of small and tiled images return to the CPU; networks run in the requested dtype."""
    objective, precision = TASK_OBJECTIVES[name], Precision("cuda", dtype)
    for changes in ({}, {"method": "gatys", "steps": 2}) if name == "stylize" else ({},):
        params = TASKS[name].Params(**REQUIRED.get(name, {}), **changes)
        prepared_model = objective.prepare(on_cuda(*TINY[name]), params, [np.zeros((SIZE, SIZE, 3), np.uint8)], "cuda")
        for h, w in ((SIZE, SIZE), (1500, 300)) if not changes else ((SIZE, SIZE),):
            alpha = np.eye(h, w, dtype=np.uint8)
            samples = [Sample(np.zeros((h, w, 3), np.uint8), alpha, needs_quality=True) for _ in range(2)]
            cuda.convolved.clear()
            outputs = objective.predict(prepared_model, samples, params, precision)
            assert len(outputs) == 2
            if outputs[0].image is not None:
                assert outputs[0].image.shape == (prepared_model.scale * h, prepared_model.scale * w, 3)
            # Latent codes and optimised images must not depend on the number format.
            assert cuda.convolved == {torch.float32 if name == "compress" or changes else dtype}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", TRAINED)
def test_training_step_stays_on_its_device(name: str, dtype: torch.dtype, cuda: FakeCuda) -> None:
    """A training step and a validation stay on the GPU; losses are float32 in every number format."""
    objective = OBJECTIVES[name]
    model = on_cuda(*TINY[name]).train()
    objective.freeze(model)
    with CUDA:
        state = State.begin(model, 0.9, 0.01)
    cuda.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    step = Step(TaskLoss(name, model), state, Precision("cuda", dtype), 1.0)
    x = torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8, device=CUDA)
    for _ in range(2):
        figures = step(x, CudaGenerator(), 1e-3)
    assert {value.dtype for value in figures.values()} == {torch.float32}
    assert {value.device for value in figures.values()} == {CUDA}
    assert dtype in cuda.convolved
    with torch.inference_mode(), CUDA:
        validation = objective.validate(state.average.module, torch.zeros(2, 3, SIZE, SIZE), CudaGenerator())
    assert "psnr_db" in validation


def test_fake_cuda_refuses_what_a_gpu_refuses(cuda: FakeCuda) -> None:
    x = torch.zeros(2, device=CUDA)
    with pytest.raises(RuntimeError, match="device"):
        x + torch.zeros(2)
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, generator=CudaGenerator())
    with CUDA:
        assert torch.rand(2, generator=CudaGenerator()).device == CUDA
