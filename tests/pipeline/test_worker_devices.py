"""The device of a worker, and workers whose device runs out of memory or is lost."""

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.objectives.denoise import Denoise
from imagemill.models.tasks.task import Output, Sample
from imagemill.models.tiling import is_lost_device, is_out_of_memory
from imagemill.pipeline.block_processor import BlockProcessor
from imagemill.pipeline.config import PoolConfig, RunConfig
from imagemill.pipeline.plan import Plan
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.storage import Store
from tests.support.run_processes import make_photos
from tests.support.worker_jobs import job_here, processor_here

BuildWorker = Callable[..., tuple[BlockProcessor, Plan]]


@pytest.fixture
def build_worker(tmp_path: Path, crops: list[np.ndarray]) -> Iterator[BuildWorker]:
    """Return build(gpus=…), which returns a worker and a plan of eight photos of one size."""
    make_photos(Store(str(tmp_path / "in")), 8, crops)
    threads = torch.get_num_threads()

    def build(**changes: Any) -> tuple[BlockProcessor, Plan]:
        pool = PoolConfig(batch_size=8)
        config = RunConfig(task="denoise", input=f"{tmp_path}/in", output=f"{tmp_path}/out", pool=pool)
        job = resolve(config)
        return processor_here(dataclasses.replace(job_here(job), **changes)), build_plan(job)

    yield build
    torch.set_num_threads(threads)


def fail_before_predict(monkeypatch: pytest.MonkeyPatch, fail: Callable[[list[Sample]], None]) -> None:
    """Let `denoise` call `fail` before it predicts."""

    def predict(model: Any, samples: list[Sample], *args: Any) -> list[Output]:
        fail(samples)
        return Denoise().predict(model, samples, *args)

    monkeypatch.setattr(TASK_OBJECTIVES["denoise"], "predict", predict)


def test_worker_without_a_gpu_leaves_it_alone(build_worker: BuildWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `pool.gpu: false`, Ray shows all GPUs of a node to a worker that has none."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert build_worker(gpus=0)[0].precision.device == "cpu"


def test_worker_whose_gpu_is_missing_uses_its_cpus(build_worker: BuildWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    worker, _ = build_worker(gpus=1, torch_threads=3, dtype="float16")
    assert (worker.precision.device, worker.precision.dtype) == ("cpu", torch.float32)
    assert torch.get_num_threads() == 3
    assert worker.tally._counts["without_cuda"] == 1


def test_batch_that_fails_leaves_no_memory_behind(build_worker: BuildWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch that did not fit is freed before its halves are tried."""
    worker, plan = build_worker()
    batch_refs: list[weakref.ref[Any]] = []
    sizes: list[int] = []

    def fail(samples: list[Sample]) -> None:
        assert not any(ref() is not None for ref in batch_refs), "memory of a batch that failed is still held"
        sizes.append(len(samples))
        if len(samples) > 2:
            activations = torch.zeros(len(samples))
            batch_refs.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    fail_before_predict(monkeypatch, fail)
    rows = pa.concat_tables(worker(plan.todo))
    assert rows["stage"].null_count == 8
    assert sizes == [8, 4, 2, 2, 4, 2, 2]


def test_worker_that_lost_its_gpu_ends(build_worker: BuildWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA repeats the error for every later call, so each later image would be rejected."""

    class Ended(BaseException):
        pass

    def fail(samples: list[Sample]) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def record_exit(code: int) -> None:
        raise Ended(code)

    fail_before_predict(monkeypatch, fail)
    monkeypatch.setattr("os._exit", record_exit)
    worker, plan = build_worker()
    with pytest.raises(Ended, match="1"):
        list(worker(plan.todo))


@pytest.mark.parametrize(
    ("error", "memory", "is_lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True, False),
        (torch.AcceleratorError("CUDA error: out of memory"), True, False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True, False),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), False, True),
        (RuntimeError("shape mismatch"), False, False),
    ],
)
def test_device_errors_are_distinguished(error: Exception, memory: bool, is_lost: bool) -> None:
    assert (is_out_of_memory(error), is_lost_device(error)) == (memory, is_lost)
