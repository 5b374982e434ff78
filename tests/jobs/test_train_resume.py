"""An interrupted training resumes at its last epoch and keeps its best result."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import yaml

from imagemill.jobs.train import TrainConfig, open_run, train
from imagemill.jobs.training.checks import build_trainable_model
from imagemill.jobs.training.images import IMAGES_FILE, examine_batch, list_training_images, open_inputs, split_images
from imagemill.jobs.training.states import State, read_newest_history, read_state, save_state, state_path
from imagemill.models import checkpoint
from imagemill.models.card import Card
from imagemill.pipeline.errors import RunFailed
from imagemill.pipeline.storage import Store

EPOCHS = 6


def read_metrics(run: Store) -> list[dict]:
    return [json.loads(line) for line in run.read("metrics.jsonl").splitlines()] if run.exists("metrics.jsonl") else []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[TrainConfig], subprocess.Popen[bytes]]]:
    """Return start(config), which starts `imagemill train` in a separate process group."""
    processes = []

    def call(config: TrainConfig) -> subprocess.Popen[bytes]:
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        command = [sys.executable, "-m", "imagemill", "train", "-c", str(tmp_path / "train.yaml")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipes))
        return processes[-1]

    yield call
    for training in processes:
        if training.poll() is None:
            os.killpg(training.pid, signal.SIGKILL)


def wait_for_epochs(training: subprocess.Popen[bytes], run: Store, epochs: int) -> None:
    while len(read_metrics(run)) < epochs:
        assert training.poll() is None, training.communicate()
        time.sleep(0.05)


def ancestors(pid: int) -> list[int]:
    chain = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        chain.append(pid)
    return chain


def workers_of(training: subprocess.Popen[bytes]) -> list[int]:
    worker_pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_worker = (process / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker")
            if is_worker and training.pid in ancestors(int(process.name)):
                worker_pids.append(int(process.name))
        except OSError:
            continue
    return worker_pids


@pytest.mark.chaos
def test_train_resumes_after_kills(start, tiny, tmp_path):
    config = tiny("denoise", epochs=EPOCHS, crops_per_image=16)
    run = open_run(config)
    training = start(config)
    wait_for_epochs(training, run, 2)
    time.sleep(0.3)
    os.killpg(training.pid, signal.SIGKILL)
    training.communicate()
    old_lines = read_metrics(run)
    assert 2 <= len(old_lines) < EPOCHS

    training = start(config)
    wait_for_epochs(training, run, len(old_lines) + 1)
    os.kill(workers_of(training)[0], signal.SIGKILL)
    out, err = training.communicate()
    assert training.returncode == 0, err
    assert b"a worker died" in err
    assert b"Traceback" not in err
    assert b"pid=" not in err
    assert f"of {EPOCHS}, psnr_db".encode() in out

    lines = read_metrics(run)
    assert lines[: len(old_lines)] == old_lines
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    assert [line["step"] for line in lines] == [epoch * lines[0]["steps"] for epoch in range(1, EPOCHS + 1)]
    assert all(line["train_loss"] < lines[0]["train_loss"] for line in lines[1:])
    card = checkpoint.read_card(str(tmp_path / "out" / "tiny-denoise"))
    assert card.training["epochs"] == EPOCHS


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_train_keeps_best_epoch_after_divergence(tiny):
    config = tiny("denoise", workers=1)
    run = open_run(config)
    train(config)
    # Simulate an interruption after the first epoch, with huge Adam moments that make the weights overflow.
    for kind in ("json", "safetensors"):
        run.delete(state_path(2, kind))
    data, history = read_state(run, 1)
    tensors = safetensors.torch.load(data)
    data = safetensors.torch.save({k: v.fill_(1e38) if k.endswith("exp_avg") else v for k, v in tensors.items()})
    run.write(state_path(1, "safetensors"), data)
    run.write(state_path(1, "json"), json.dumps({"sha256": hashlib.sha256(data).hexdigest(), "history": history}).encode())
    with pytest.raises(RunFailed, match=r"diverged in step \d of epoch 2: .*contains the best of 1 epoch\. "):
        train(config)
    assert checkpoint.read_card(f"{config.output}/{config.name}").training["epochs"] == 1


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_train_resumes_with_other_worker_count(tiny):
    config, single_config = tiny("denoise", warmup_steps=0), tiny("denoise", warmup_steps=0, workers=1)
    train(config)
    # Simulate a machine with another number of GPUs: continue the same run with one worker.
    for path in ("images.parquet", state_path(1, "safetensors"), state_path(1, "json")):
        open_run(single_config).write(path, open_run(config).read(path))
    train(single_config)
    (first, last), (_, two_worker_line) = read_metrics(open_run(single_config)), read_metrics(open_run(config))
    assert (last["steps"], last["step"]) == (2 * first["steps"], 3 * first["steps"])
    assert last["learning_rate"] < two_worker_line["learning_rate"] < 0.1 * config.learning_rate


def write_finished_run(config: TrainConfig, steps: tuple[int, int] = (8, 8), planned: tuple[int, int] = (8, 8)) -> None:
    """Write, without Ray, a run whose epochs are all complete and whose best epoch is not yet saved."""
    run, inputs, out = open_run(config), open_inputs(config), io.BytesIO()
    pq.write_table(split_images(examine_batch(list_training_images(inputs), inputs), config).table, out)
    run.write(IMAGES_FILE, out.getvalue())
    state = State.begin(build_trainable_model(config), config.ema_decay, config.weight_decay)
    for epoch in range(1, config.epochs + 1):
        line = {"epoch": epoch, "step": 8 * epoch, "steps": steps[epoch - 1], "planned_steps": planned[epoch - 1]}
        figures = {"train_loss": 1.0, "valid_psnr_db": 20.0 + epoch, "learning_rate": 0.001, "seconds": 1.0}
        state.history.append(line | figures)
        save_state(state, run, fencing_token=0)


def save_untrained(url: str, config: TrainConfig, seed: int) -> Card:
    """Save an untrained checkpoint that `config` can start from."""
    torch.manual_seed(seed)
    card_fields = {"name": "first", **config.model_dump(include={"task", "architecture", "parameters"})}
    return checkpoint.save(url, build_trainable_model(config), card_fields)


def test_completed_train_keeps_card_and_metrics(tiny):
    config = tiny("denoise")
    write_finished_run(config)
    train(config)
    path = Path(config.output, config.name, "card.json")
    checkpoint.write_metrics(str(path.parent), {"set": "kodak", "images": 24, "headline": "31.00 dB"})
    old_lines = path.read_bytes()
    assert train(config).metrics[1]["set"] == "kodak"
    assert path.read_bytes() == old_lines
    weights = path.with_name("weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    card = train(config)
    checkpoint.read_weights(str(path.parent), card)


def test_train_repairs_a_kill_between_weights_and_card(tiny, tmp_path, monkeypatch):
    place = f"{tmp_path}/out/tiny-denoise"
    config = tiny("denoise", init=place)
    first = save_untrained(place, config, 0)
    write_finished_run(config)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_card", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, overwrite=True)
    assert checkpoint.read_card(place) == first
    card = train(config, overwrite=True)
    assert card.training["init_sha256"] == first.sha256
    checkpoint.read_weights(place, card)
    assert train(config) == card


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_train_restarts_only_for_another_init(tiny, tmp_path, caplog):
    place = f"{tmp_path}/first"
    config = tiny("denoise", init=place, workers=1)
    first = save_untrained(place, config, 0)
    write_finished_run(config)
    train(config)
    shutil.rmtree(place)
    shutil.rmtree(tmp_path / "out/tiny-denoise")
    assert train(config).training["init_sha256"] == first.sha256

    second = save_untrained(place, config, 1)
    assert train(config).training["init_sha256"] == second.sha256
    assert "init is another checkpoint than at the first start, so the training starts again" in caplog.text
    assert not {line["valid_psnr_db"] for line in read_newest_history(open_run(config))} & {21.0, 22.0}


@pytest.mark.parametrize(("steps", "has_warning"), [((8, 4), False), ((8, 3), True)])
def test_train_warns_about_missing_steps(steps, has_warning, tiny, caplog):
    config = tiny("denoise")
    write_finished_run(config, steps, planned=(8, 4))
    train(config)
    assert ("epochs [2] had fewer steps" in caplog.text) == has_warning
