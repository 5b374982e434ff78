"""A training that is cut off goes on where it was, and keeps what it had."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import yaml

from jobs.train import TrainConfig, run_of, train
from jobs.training.states import path_of, read_state
from models import checkpoint
from pipeline.errors import RunFailed
from pipeline.storage import Store

EPOCHS = 6


def lines_of(run: Store) -> list[dict]:
    return [json.loads(line) for line in run.read("metrics.jsonl").splitlines()] if run.exists("metrics.jsonl") else []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[TrainConfig], subprocess.Popen[bytes]]]:
    """start(config): `imagemill train` as a process group of its own."""
    started = []

    def call(config: TrainConfig) -> subprocess.Popen[bytes]:
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        command = [sys.executable, "-m", "jobs", "train", "-c", str(tmp_path / "train.yaml")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipes))
        return started[-1]

    yield call
    for training in started:
        if training.poll() is None:
            os.killpg(training.pid, signal.SIGKILL)


def wait_for_epochs(training: subprocess.Popen[bytes], run: Store, epochs: int) -> None:
    while len(lines_of(run)) < epochs:
        assert training.poll() is None, training.communicate()
        time.sleep(0.05)


def ancestors(pid: int) -> list[int]:
    chain = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        chain.append(pid)
    return chain


def workers_of(training: subprocess.Popen[bytes]) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = (process / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker")
            if ours and training.pid in ancestors(int(process.name)):
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.chaos
def test_a_killed_training_and_a_killed_worker_go_on_where_they_were(start, tiny, tmp_path):
    config = tiny("denoise", epochs=EPOCHS, crops_per_image=16)
    run = run_of(config)
    training = start(config)
    wait_for_epochs(training, run, 2)
    time.sleep(0.3)
    os.killpg(training.pid, signal.SIGKILL)
    training.communicate()
    before = lines_of(run)
    assert 2 <= len(before) < EPOCHS

    training = start(config)
    wait_for_epochs(training, run, len(before) + 1)
    os.kill(workers_of(training)[0], signal.SIGKILL)
    out, err = training.communicate()
    assert training.returncode == 0, err
    assert b"a worker died" in err
    assert b"Traceback" not in err
    assert b"pid=" not in err
    assert f"of {EPOCHS}, psnr_db".encode() in out

    lines = lines_of(run)
    assert lines[: len(before)] == before
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    assert [line["step"] for line in lines] == [epoch * lines[0]["steps"] for epoch in range(1, EPOCHS + 1)]
    assert all(line["train_loss"] < lines[0]["train_loss"] for line in lines[1:])
    card = checkpoint.read_card(str(tmp_path / "out" / "tiny-denoise"))
    assert card.training["epochs"] == EPOCHS


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_a_training_that_diverges_later_leaves_its_best_epoch(tiny):
    config = tiny("denoise", workers=1)
    run = run_of(config)
    train(config)
    # As if cut off after the first epoch, with moments that no gradient made: they throw the weights out of a float's range.
    for kind in ("json", "safetensors"):
        run.delete(path_of(2, kind))
    data, history = read_state(run, 1)
    tensors = safetensors.torch.load(data)
    data = safetensors.torch.save({k: v.fill_(1e38) if k.endswith("exp_avg") else v for k, v in tensors.items()})
    run.write(path_of(1, "safetensors"), data)
    run.write(path_of(1, "json"), json.dumps({"sha256": hashlib.sha256(data).hexdigest(), "history": history}).encode())
    with pytest.raises(RunFailed, match=r"diverged in step \d of epoch 2: .*holds the best of 1 epoch\. "):
        train(config)
    assert checkpoint.read_card(f"{config.output}/{config.name}").training["epochs"] == 1


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_a_training_goes_on_with_another_number_of_workers(tiny):
    config, alone = tiny("denoise", warmup_steps=0), tiny("denoise", warmup_steps=0, workers=1)
    train(config)
    # As on a machine with another number of GPUs: the config is the same there.
    for path in ("images.parquet", path_of(1, "safetensors"), path_of(1, "json")):
        run_of(alone).write(path, run_of(config).read(path))
    train(alone)
    (first, last), (_, of_two) = lines_of(run_of(alone)), lines_of(run_of(config))
    assert (last["steps"], last["step"]) == (2 * first["steps"], 3 * first["steps"])
    assert last["learning_rate"] < of_two["learning_rate"] < 0.1 * config.learning_rate
