import io
import json
import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from imagemill.jobs.train import open_run, show_training, train
from imagemill.jobs.training.checks import build_trainable_model, read_init_digest, read_initial_weights
from imagemill.jobs.training.config import TrainConfig
from imagemill.jobs.training.network import build_network
from imagemill.jobs.training.states import State, read_newest_history, save_state
from imagemill.models import checkpoint
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.architectures.unet import UNet
from imagemill.models.objectives import OBJECTIVES, TASK_OBJECTIVES
from imagemill.models.precision import Precision
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.task import Sample
from imagemill.pipeline.errors import ConfigError, OutputHeld, RunFailed, StorageError, TooManyRejects
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.lease import FOLDER
from imagemill.pipeline.storage import Store
from tests.support.tiny_models import REQUIRED, TRAINED

DIGITS = {"architecture": "conv", "parameters": {}, "crop": 28, "crops_per_image": 1, "augment": "none"}


def scalars(events: bytes) -> list[tuple[str, int, float]]:
    """Return (tag, step, value) of each summary in an event file.

    A record is a length, its checksum, an Event and its checksum.
    """
    summaries = []
    while events:
        (length,) = struct.unpack("<Q", events[:8])
        event = Event.FromString(events[12 : 12 + length])
        summaries += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        events = events[16 + length :]
    return summaries


def read_metrics(run: Store) -> list[dict]:
    return [json.loads(line) for line in run.read("metrics.jsonl").splitlines()]


# The training that stays in `make test` covers most: it also fits entropy tables, and reads and writes a bucket. Objectives
# that belong to no task are long tests: tests/models/test_style.py also checks that DDP reaches all weights.
LEARNED = [
    name if name == "compress" else pytest.param(name, marks=pytest.mark.slow if name in TASKS else pytest.mark.chaos)
    for name in TRAINED
]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("task", LEARNED)
def test_train_every_objective_with_two_workers(task, tiny, clean, crops, caplog, monkeypatch, rclone_bucket):
    monkeypatch.setattr("imagemill.jobs.training.progress.LOG_SECONDS", 0)
    caplog.set_level("INFO", "imagemill")
    config = tiny(task)
    if task == "compress":
        # Read the images of this task from a bucket and write its run to a bucket.
        bucket = Store(f"{rclone_bucket}/clean")
        for path in clean.iterdir():
            bucket.write(path.name, path.read_bytes())
        config = tiny(task, input=[bucket.url], output=f"{rclone_bucket}/out/")
    options = config.storage.options_for(config.output)
    card = train(config)
    run = open_run(config)

    assert card.training["epochs"] == 2
    assert card.training["left_out"] == 2
    assert card.data == "36 images of clean"
    assert "2 of 50 images left out: broken.png: UnknownFormat" in caplog.text
    assert "9×9 pixels, smaller than crop = 32" in caplog.text
    assert " images/s, " in caplog.text
    folder = f"{config.output.rstrip('/')}/tiny-{task}"
    assert checkpoint.read_card(folder, options) == card
    model = checkpoint.build(card, checkpoint.read_weights(folder, card, options))
    if task in TASKS:
        params = TASKS[task].Params(**REQUIRED.get(task, {}))
        prepared_model = TASK_OBJECTIVES[task].prepare(model, params, [crops[1]], "cpu")
        output = TASK_OBJECTIVES[task].predict(prepared_model, [Sample(crops[0])], params, Precision())[0]
        h, w = crops[0].shape[:2]
        assert output.image.shape == (model.scale * h, model.scale * w, 3)

    lines = read_metrics(run)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [line["step"] for line in lines] == [lines[0]["steps"], 2 * lines[0]["steps"]]
    best = lines[card.training["best_epoch"] - 1]
    assert card.metrics[0]["psnr_db"] == pytest.approx(best["valid_psnr_db"], abs=1e-3)
    assert ("valid_psnr_db", 2, pytest.approx(lines[1]["valid_psnr_db"], rel=1e-6)) in scalars(
        run.read("tensorboard/events.out.tfevents.imagemill")
    )
    width, height = Image.open(io.BytesIO(run.read("curves.png"))).size
    assert (width, height) == (1200, 1380)
    if task == "compress":
        coded = TASK_OBJECTIVES[task].predict(model, [Sample(crops[0])], TASKS[task].Params(coding="coded"), Precision())[0]
        assert np.array_equal(model.entropy.decode(coded.payload, coded.latent.shape), coded.latent)


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_train_digits_from_bucket_to_bucket(rclone_bucket, tiny, crops):
    clean = Store(f"{rclone_bucket}/clean")
    for number, crop in enumerate(crops):
        clean.write(f"{number}.png", encode_rgb(crop[:28, :28], "PNG"))
    config = tiny("compress", **DIGITS, workers=1, input=[clean.url], output=f"{rclone_bucket}/out/")
    card = train(config)
    assert card.training["epochs"] == 2
    lines = read_metrics(open_run(config))
    assert train(config) == card, "a finished training is not trained again"
    assert read_metrics(open_run(config)) == lines
    assert checkpoint.read_card(f"{rclone_bucket}/out/tiny-compress", config.storage.options()) == card
    output = Store(f"{rclone_bucket}/out")
    written = {entry.path for entry in output.entries() if "lease" not in entry.path}
    run = f"runs/{open_run(config).url.rpartition('/')[2]}"
    states = {f"{run}/states/epoch-0000{n}.{kind}" for n in (1, 2) for kind in ("json", "safetensors")}
    figures = {f"{run}/{name}" for name in ("curves.png", "metrics.jsonl", "images.parquet")}
    events = {f"{run}/tensorboard/events.out.tfevents.imagemill"}
    assert written == {"tiny-compress/card.json", "tiny-compress/weights.safetensors"} | states | figures | events


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_train_reports_divergence_in_the_first_epoch(tiny, tmp_path):
    with pytest.raises(RunFailed, match=r"diverged in step \d of epoch 1: .*no epoch was completed. Lower learning_rate"):
        train(tiny("denoise", learning_rate=1e30, workers=1))
    assert not (tmp_path / "out" / "tiny-denoise").exists()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("files", "changes", "error", "message"),
    [
        ({"a.png": 64}, {}, ConfigError, "1 of 1 image can be used"),
        ({"a.png": 64, "b.png": 31, "c.png": 8}, {}, ConfigError, r"2 are smaller than crop = 32"),
        ({"a.png": 64, "b.png": 64, "c.png": None}, {}, TooManyRejects, "1 of 3 images left out: c.png: UnknownFormat"),
        ({"a.png": 64, "b.png": 64}, {"batch_size": 64}, ConfigError, "2 crops, not enough for one step"),
    ],
)
def test_train_refuses_unusable_images(files, changes, error, message, tiny, tmp_path, crops):
    folder = tmp_path / "few"
    folder.mkdir()
    for name, side in files.items():
        (folder / name).write_bytes(encode_rgb(crops[0][:side, :side], "PNG") if side else b"broken")
    with pytest.raises(error, match=message):
        train(tiny("denoise", input=[str(folder)], **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "dream"}, "task = 'dream': unknown; valid: colorize"),
        ({"architecture": "brain"}, "architecture = 'brain': unknown; valid: chroma"),
        ({"architecture": "codec", "parameters": {}}, "'codec': cannot be trained for the task denoise"),
        ({"task": "compress"}, "'unet': cannot be trained for the task compress"),
        ({"parameters": {"depth": 3}}, "depth"),
        ({"parameters": {"widths": []}}, r"architecture unet with parameters \{.widths.: \[\]\}: "),
        ({"crop": 30}, "crop = 30: must be a multiple of 4"),
        ({"input": []}, "train needs both"),
        ({"init": "compress-small"}, "has the architecture codec"),
        ({"init": "denoise-small"}, "which has not all of its weights"),
    ],
)
def test_train_refuses_invalid_configs(changes, message, tiny, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(tiny("denoise").model_copy(update=changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("key", "value"), [("seed", -1), ("seed", 2**32), ("name", "codec.bin"), ("name", "a.pth")])
def test_train_refuses_invalid_names_and_seeds(key, value, tiny):
    with pytest.raises(ConfigError, match=f"{key} = {value!r}"):
        show_training(tiny("denoise").model_dump() | {key: value}, "test")


@pytest.mark.parametrize("task", TRAINED)
def test_train_refuses_architectures_of_other_tasks(task, tiny):
    errors = {}
    for name in ARCHITECTURES:
        try:
            build_trainable_model(tiny(task, architecture=name, parameters={}))
        except ConfigError as e:
            errors[name] = str(e)
    assert tiny(task).architecture not in errors
    assert all(f"'{name}': cannot be trained for the task {task}" in message for name, message in errors.items())


@pytest.mark.parametrize("task", TRAINED)
def test_validation_shows_nan_weights(task, tiny):
    model = build_trainable_model(tiny(task)).eval()
    clean = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for sound in (True, False):
        with torch.inference_mode():
            figures = OBJECTIVES[task].validate(model, clean, torch.Generator().manual_seed(0))
        assert all(math.isfinite(value) for value in figures.values()) == sound
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)


def test_train_refuses_unwritable_or_nested_output(tiny, tmp_path, clean):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot be (listed|written)"):
        train(tiny("denoise", output=str(tmp_path / "file" / "out")))
    with pytest.raises(ConfigError, match="is inside input"):
        train(tiny("denoise", output=str(clean / "out")))


def test_train_without_its_lease_writes_nothing(tiny, tmp_path, monkeypatch):
    config = tiny("denoise", epochs=1)
    run, state = open_run(config), State.begin(build_trainable_model(config), config.ema_decay, config.weight_decay)
    state.history.append({"epoch": 1, "step": 0, "valid_psnr_db": 1.0})
    save_state(state, run, fencing_token=0)

    def read_after_takeover(store):
        store.write(f"{FOLDER}/00000002.json", b"{}")
        return read_newest_history(store)

    monkeypatch.setattr("imagemill.jobs.train.read_newest_history", read_after_takeover)
    with pytest.raises(OutputHeld, match="another run took over"):
        train(config)
    assert not (tmp_path / "out/tiny-denoise").exists()


def test_train_from_init_drops_entropy_tables(tiny):
    card = checkpoint.read_card("compress-small")
    config = tiny("compress", parameters=card.parameters, init="compress-small")
    weights = read_initial_weights(config)
    assert weights
    assert not [name for name in weights if name.startswith("entropy")]
    ARCHITECTURES["codec"](**card.parameters).load_state_dict(weights)


def test_train_larger_network_begins_like_its_init(tiny, tmp_path):
    small, place = UNet(widths=(8, 8), blocks=1), str(tmp_path / "small")
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    card = {"name": "small", "task": "denoise", "architecture": "unet", "parameters": {"widths": [8, 8], "blocks": 1}}
    saved = checkpoint.save(place, small, card, {})
    config = tiny("denoise", parameters={"widths": [8, 8, 16], "blocks": [1, 2, 3]}, init=place)
    assert read_init_digest(config, open_run(config)) == saved.sha256
    large = build_network(config)
    large.load_state_dict(large.state_dict() | read_initial_weights(config))
    x, sigma = torch.rand(2, 3, 32, 32), torch.tensor([0.1, 0.2])
    torch.testing.assert_close(large(x, sigma), checkpoint.build(*checkpoint.read(place))(x, sigma))


def test_train_never_resumes_another_config(tiny, tmp_path):
    base_config = tiny("denoise")
    assert base_config.digest() == tiny("denoise", output=str(tmp_path / "elsewhere"), max_broken_fraction=0.5).digest()
    assert base_config.digest() != base_config.model_copy(update={"learning_rate": 0.5}).digest()
    assert open_run(base_config).url != open_run(base_config.model_copy(update={"epochs": 3})).url


def test_config_digest_is_stable():
    """Interrupted trainings resume by the digest, and cards contain it."""
    identity = {"name": "tiny", "task": "denoise", "architecture": "unet", "parameters": {"widths": [8, 8], "blocks": 1}}
    settings = {"input": ["photos"], "output": "out", "epochs": 2, "crop": 32, "learning_rate": 0.002}
    digest = TrainConfig.model_validate({**identity, **settings}).digest()
    assert digest == "289c0ea3ac08945aaff93b49efed57891856f0b5090c9e6e28324f9ec167e763"
