"""Test training states without Ray: saving, resuming, and deleting old states."""

from pathlib import Path

import pytest
import torch

from imagemill.jobs.training.config import TrainConfig
from imagemill.jobs.training.states import (
    State,
    best_epoch,
    read_newest_history,
    read_state,
    save_state,
    state_path,
    stored_epochs,
)
from imagemill.jobs.training.worker import learning_rate
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.objectives import OBJECTIVES
from imagemill.pipeline.errors import OutputHeld, StorageError
from imagemill.pipeline.output.lease import FOLDER
from imagemill.pipeline.storage import Store


def fresh() -> State:
    torch.manual_seed(0)
    model = ARCHITECTURES["unet"](widths=[8, 8], blocks=1).to(memory_format=torch.channels_last)
    return State.begin(model, ema_decay=0.999, weight_decay=1e-4)


def train_epoch(state: State, psnr_db: float) -> None:
    for _ in range(3):
        generator = torch.Generator().manual_seed(state.step)
        OBJECTIVES["denoise"].loss(state.model, torch.rand(2, 3, 16, 16, generator=generator), generator)["loss"].backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.average.update_parameters(state.model)
        state.step += 1
    state.history.append({"epoch": state.epoch + 1, "step": state.step, "valid_psnr_db": psnr_db})


def test_resumed_training_is_bit_identical(tmp_path: Path) -> None:
    run, reference = Store(str(tmp_path)), fresh()
    train_epoch(reference, 1)
    save_state(reference, run, fencing_token=0)
    train_epoch(reference, 2)
    resumed = fresh()
    resumed.load(*read_state(run, 1))
    train_epoch(resumed, 2)
    assert resumed.to_bytes() == reference.to_bytes()
    assert resumed.history == reference.history


def test_keep_keeps_the_newest_two_and_the_best(tmp_path: Path) -> None:
    run, state = Store(str(tmp_path)), fresh()
    for psnr_db in (1, 5, 2, 3, 4):
        train_epoch(state, psnr_db)
        save_state(state, run, fencing_token=0)
    assert stored_epochs(run) == [5, 4, 2]
    assert len(list(run.entries())) == 6
    assert read_newest_history(run) == state.history


def test_keep_without_the_lease_writes_nothing(tmp_path: Path) -> None:
    run, state = Store(str(tmp_path)), fresh()
    train_epoch(state, 1)
    run.write(f"{FOLDER}/00000002.json", b"{}")
    with pytest.raises(OutputHeld, match="another run took over"):
        save_state(state, run, fencing_token=1)
    assert stored_epochs(run) == []


def test_best_epoch_survives_a_damaged_better_one(tmp_path: Path) -> None:
    run, state = Store(str(tmp_path)), fresh()
    for psnr_db in (30, 35, 31, 31, 36):
        train_epoch(state, psnr_db)
        save_state(state, run, fencing_token=0)
    assert stored_epochs(run) == [5, 4, 2]
    run.write(state_path(5, "safetensors"), b"damaged")
    restored_state = fresh()
    restored_state.load(*read_state(run, len(read_newest_history(run))))
    train_epoch(restored_state, 34)
    save_state(restored_state, run, fencing_token=0)
    assert best_epoch(read_newest_history(run)) == 2
    assert read_state(run, 2)


def test_learning_rate_continues_with_other_workers() -> None:
    """Resuming with another number of workers continues at the learning rate of the epoch."""
    config = TrainConfig(name="t", task="denoise", architecture="unet", epochs=4, crop=32, warmup_steps=0)
    one, two = fresh(), fresh()
    # One worker takes twice as many steps per epoch as two workers.
    one.history, one.step = [{"epoch": 1, "step": 100}, {"epoch": 2, "step": 200}], 200 + 50
    two.history, two.step = [{"epoch": 1, "step": 100}, {"epoch": 2, "step": 150}], 150 + 25
    shares = one.share(4, 100), two.share(4, 50)
    assert shares == (0.625, 0.625)
    assert learning_rate(one.step, shares[0], config) == learning_rate(two.step, shares[1], config)
    assert fresh().share(4, 50) == 0


def test_validation_does_not_change_the_average() -> None:
    state = State.begin(ARCHITECTURES["conv"](), ema_decay=0.999, weight_decay=1e-4)
    old_values = {name: value.clone() for name, value in state.average.state_dict().items()}
    with torch.inference_mode():
        OBJECTIVES["compress"].validate(state.average.module, torch.rand(1, 3, 28, 28), torch.Generator())
    assert all(torch.equal(value, old_values[name]) for name, value in state.average.state_dict().items())
    assert state.model.training


def test_damaged_states_are_skipped(tmp_path: Path) -> None:
    run, state = Store(str(tmp_path)), fresh()
    for psnr_db in (1, 2):
        train_epoch(state, psnr_db)
        save_state(state, run, fencing_token=0)
    run.write(state_path(3, "safetensors"), b"written, but its driver died before the rest")
    assert len(read_newest_history(run)) == 2
    run.write(state_path(2, "safetensors"), run.read(state_path(2, "safetensors"))[:-1])
    assert len(read_newest_history(run)) == 1
    run.delete(state_path(2, "safetensors"))
    assert len(read_newest_history(run)) == 1
    run.write(state_path(1, "json"), b"{")
    with pytest.raises(StorageError, match="all states are damaged"):
        read_newest_history(run)


@pytest.mark.parametrize(
    ("key", "values", "best"),
    [("valid_psnr_db", [1, 3, 2], 2), ("valid_psnr_db", [3, 3, 2], 2), ("valid_loss", [1, 0.5, 2], 2)],
)
def test_best_epoch_has_least_loss_or_highest_psnr(key: str, values: list[float], best: int) -> None:
    history = [{"epoch": n, "valid_psnr_db": -n, key: value} for n, value in enumerate(values, 1)]
    assert best_epoch(history) == best
