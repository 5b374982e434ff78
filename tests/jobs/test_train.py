import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.train import TrainConfig, initial_weights, train
from models import checkpoint
from models.architectures import ARCHITECTURES
from models.precision import Precision
from models.tasks import TASKS
from models.tasks.task import Sample
from pipeline.errors import ConfigError

TINY = {
    "denoise": {"architecture": "unet", "parameters": {"widths": [8, 8], "blocks": 1}},
    "compress": {"architecture": "codec", "parameters": {"code_width": 8, "code_blocks": 1, "width": 8, "blocks": 1}},
}


@pytest.fixture
def photos(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, crop in enumerate(crops):
        Image.fromarray(crop).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"broken")
    return folder


def config_of(task: str, photos: Path, output: Path, **changes: object) -> TrainConfig:
    base = {"name": f"tiny-{task}", "task": task, "input": [str(photos)], "output": str(output), "epochs": 2, "crop": 32}
    more = {"crops_per_image": 2, "batch_size": 4, "validation_share": 0.2, "warmup_steps": 2}
    return TrainConfig(**{**base, **more, **TINY[task], **changes})


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_trains_with_two_workers_and_its_checkpoint_runs(task, photos, tmp_path, crops):
    card = train(config_of(task, photos, tmp_path / "out"))
    assert card.training["epochs"] == 2
    assert np.isfinite(card.metrics[0]["psnr_db"])
    folder = str(tmp_path / "out" / f"tiny-{task}")
    assert checkpoint.read_card(folder) == card
    model = checkpoint.build(card, checkpoint.read_weights(folder, card))
    output = TASKS[task].predict(model, [Sample(crops[0])], TASKS[task].Params(), Precision())[0]
    assert output.image.shape == crops[0].shape
    if task == "compress":
        coded = TASKS[task].predict(model, [Sample(crops[0])], TASKS[task].Params(coding="coded"), Precision())[0]
        assert np.array_equal(model.entropy.decode(coded.payload, coded.latent.shape), coded.latent)
    state = sorted((tmp_path / "out" / "runs").rglob("state.json"))[-1]
    assert json.loads(state.read_text())["epoch"] == 2


@pytest.mark.parametrize("change", [{"task": "dream"}, {"architecture": "brain"}, {"input": []}, {"init": "compress-small"}])
def test_a_training_that_cannot_start_says_so(change, photos, tmp_path):
    config = config_of("denoise", photos, tmp_path / "out").model_copy(update=change)
    with pytest.raises(ConfigError):
        train(config)


def test_training_that_starts_from_a_checkpoint_leaves_its_tables_behind(photos, tmp_path):
    card = checkpoint.read_card("compress-small")
    config = config_of("compress", photos, tmp_path, parameters=card.parameters, init="compress-small")
    weights = initial_weights(config)
    assert weights
    assert not [name for name in weights if name.startswith("entropy")]
    ARCHITECTURES["codec"](**card.parameters).load_state_dict(weights)


def test_a_changed_config_never_resumes_an_old_run(photos, tmp_path):
    one = config_of("denoise", photos, tmp_path / "out")
    assert one.digest() == config_of("denoise", photos, tmp_path / "elsewhere").digest()
    assert one.digest() != one.model_copy(update={"learning_rate": 0.5}).digest()
