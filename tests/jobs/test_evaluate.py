import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagemill.jobs.evaluate import build_card_entry, build_record, evaluate, show_evaluation
from imagemill.jobs.evaluations import EVALUATIONS, inpaint
from imagemill.jobs.evaluations.colorize import compare_hues
from imagemill.jobs.evaluations.denoise import denoise_float, draw_noise
from imagemill.jobs.evaluations.evaluation import EvaluateConfig, Evaluation, Measured
from imagemill.models import checkpoint
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.errors import CheckpointError
from imagemill.models.tasks import TASKS
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.encode import encode_image
from tests.support.jpegs import crop_photo
from tests.support.tiny_models import TINY


def untrained(folder: Path, name: str) -> str:
    """Save a small untrained checkpoint and return its folder."""
    architecture, parameters = TINY[name]
    card = {
        "name": name,
        "task": name if name in TASKS else "compress",
        "architecture": architecture,
        "parameters": parameters,
    }
    checkpoint.save(str(folder / name), ARCHITECTURES[architecture](**parameters), card)
    return str(folder / name)


@pytest.fixture
def photos(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    """Return a folder of two colour images and a gray image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(crops[0]).save(folder / "0.png")
    Image.fromarray(crops[20]).save(folder / "1.jpg")
    Image.fromarray(crops[40]).convert("L").save(folder / "gray.png")
    return folder


@pytest.fixture
def digits(tmp_path: Path) -> tuple[str, str]:
    """Write folders of 28×28 gray images: one to evaluate on and one to fit PCA on."""
    rng = np.random.default_rng(0)
    for folder, count in (("test", 3), ("train", 30)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            blob = np.kron(rng.integers(0, 256, (7, 7)), np.ones((4, 4))).astype(np.uint8)
            Image.fromarray(blob).save(tmp_path / folder / f"{number}.png")
    return str(tmp_path / "test"), str(tmp_path / "train")


def test_every_task_has_an_evaluation():
    # The damage that a network of `restore` repairs is not known.
    assert sorted(EVALUATIONS) == sorted(set(TASKS) - {"restore"})


def test_evaluate_denoise_writes_tables_picture_and_card(photos, tmp_path, capsys):
    folder = untrained(tmp_path, "denoise")
    values = {"task": "denoise", "input": str(photos), "output": str(tmp_path / "out"), "checkpoint": folder, "at": [25]}
    evaluation = show_evaluation(values, "test", update_card=True)
    stdout = capsys.readouterr().out
    assert "3 images, photos" in stdout
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    line = next(iter(record["tables"].values()))[0]
    # Noise of sigma 25 gives a PSNR of 20.17 dB if no value is clipped.
    assert line["noisy dB"] == pytest.approx(20.17, abs=1)
    assert {"files blind dB", "files given SSIM", "float blind dB", "float given dB"} <= set(line)
    assert record["checkpoints"][0]["sha256"] == checkpoint.read_card(folder).sha256
    assert decode_image((tmp_path / "out" / "evaluation.png").read_bytes()).rgb.shape[0] > 256
    card = checkpoint.read_card(folder)
    assert [entry["set"] for entry in card.metrics] == ["photos"]
    assert card.metrics[0]["headline"] == evaluation.measured[0].headline
    checkpoint.read_weights(folder, card)


def test_evaluate_denoise_estimates_float_noise_without_padding():
    """Padded to multiples of 8, the image has rows and columns that repeat and look like less noise."""
    model = checkpoint.build(*checkpoint.read("denoise-small"))
    levels = []
    forward = model.forward
    model.forward = lambda x, sigma_1: levels.append(float(sigma_1) * 255) or forward(x, sigma_1)
    picture = decode_image(encode_image(Image.fromarray(crop_photo(129, 97)).convert("L"), "PNG"))
    denoise_float(model, "a", picture, 25, None)
    noisy = (picture.rgb + draw_noise("a", picture, 25)) / np.float32(255)
    alone = float(model.noise_level(torch.from_numpy(noisy).permute(2, 0, 1)[None])) * 255
    assert levels == [pytest.approx(alone)]
    assert alone == pytest.approx(25, abs=1.5)


def test_evaluate_denoise_measures_the_noise_of_photos(photos, tmp_path):
    config = EvaluateConfig(
        task="denoise", input=str(photos), checkpoint=untrained(tmp_path, "denoise"), at=[15], noise="photo"
    )
    evaluation = evaluate(config)
    [line] = next(iter(evaluation.tables.values()))
    assert set(line) == {"sigma", "noisy dB", "noisy SSIM", "files blind dB", "files blind SSIM"}
    assert line["noisy dB"] == pytest.approx(24.6, abs=2)
    assert "noise like that of photos" in evaluation.notes[1]


def test_evaluate_compress_has_curves_and_bd_rates(photos, tmp_path):
    folder = untrained(tmp_path, "compress")
    config = EvaluateConfig(task="compress", input=str(photos), checkpoint=folder, at=[64, 18, 26, 40])
    evaluation = evaluate(config)
    curve, bd = evaluation.tables.values()
    assert [line["step"] for line in curve] == [18, 26, 40, 64]
    assert all(a["bits/pixel"] > b["bits/pixel"] > b["payload bits/pixel"] for a, b in pairwise(curve))
    assert curve[0]["PSNR dB"] > curve[-1]["PSNR dB"]
    assert "MS-SSIM" not in curve[0]
    assert "0 of 3 images" in evaluation.notes[0]
    assert bd[0]["against"].startswith("JPEG")
    assert bd[0]["all bytes %"] > bd[0]["payload %"]


def test_evaluate_inpaint_against_interpolation(photos, tmp_path, monkeypatch):
    damages = {name: inpaint.DAMAGES[name] for name in ("16-px blocks 15 %", "red plane")}
    monkeypatch.setattr(inpaint, "DAMAGES", damages)
    config = EvaluateConfig(task="inpaint", input=str(photos), checkpoint=untrained(tmp_path, "inpaint"))
    evaluation = evaluate(config)
    lines = next(iter(evaluation.tables.values()))
    assert [line["damage"] for line in lines] == list(damages)
    for line in lines:
        assert line["floor dB"] >= line["floor in holes dB"] > 5
        # The untrained network returns the push-pull fill, which restores the lost plane of a gray image exactly.
        is_exact = line["damage"] == "red plane"
        assert line["ours in holes dB"] > 5
        assert line["ours dB"] == np.inf if is_exact else line["ours dB"] > line["ours in holes dB"]


def test_evaluate_colorize_against_gray(photos, tmp_path):
    config = EvaluateConfig(task="colorize", input=str(photos), checkpoint=untrained(tmp_path, "colorize"))
    evaluation = evaluate(config)
    line = next(iter(evaluation.tables.values()))[0]
    # The untrained network adds no colour.
    assert line["gain dB"] == pytest.approx(0, abs=0.1)
    assert line["colourfulness"] < line["of the originals"]
    assert line["right hue %"] == line["wrong hue %"] == 0
    assert evaluation.images == 2


def test_compare_hues_counts_clearly_coloured_pixels():
    colours = [(200, 100, 100), (100, 200, 100), (120, 118, 118), (200, 100, 100)]
    original = np.array([colours], np.uint8)
    # Red stays red, green becomes red, gray becomes red, and red fades to gray.
    output = np.array([[(190, 110, 105), (200, 100, 100), (200, 100, 100), (150, 149, 149)]], np.uint8)
    figures = compare_hues([original], [output])
    assert figures["right hue %"] == figures["wrong hue %"] == pytest.approx(100 / 3)
    assert figures["wrong of coloured %"] == pytest.approx(50)


def test_evaluate_upscale_against_bicubic(photos, tmp_path):
    # Upscaling by 2 can reproduce only 94×126 of the 95×127 pixels.
    Image.open(photos / "0.png").crop((0, 0, 127, 95)).save(photos / "odd.png")
    config = EvaluateConfig(task="upscale", input=str(photos), checkpoint=untrained(tmp_path, "upscale"))
    evaluation = evaluate(config)
    line = next(iter(evaluation.tables.values()))[0]
    # The untrained network is bicubic; Pillow differs by rounding to 8 bits between rows and columns.
    assert line["gain Y dB"] == pytest.approx(0, abs=0.05)
    assert line["gain RGB dB"] == pytest.approx(0, abs=0.05)
    assert line["bicubic Y dB"] > line["bicubic RGB dB"] > 20
    assert evaluation.images == 4


def test_evaluate_stylize_against_optimisation(photos, tmp_path):
    Image.open(photos / "1.jpg").save(tmp_path / "style.png")
    params = {"style": [str(tmp_path / "style.png")], "steps": 2}
    folder = untrained(tmp_path, "stylize")
    evaluation = evaluate(EvaluateConfig(task="stylize", input=str(photos), checkpoint=folder, at=[3], params=params))
    sweep, comparison, ripples = evaluation.tables.values()
    assert [line["alpha / beta"] for line in sweep] == [3]
    assert [line["method"] for line in comparison] == ["adain", "gatys, 0 steps", "gatys, 2 steps"]
    assert comparison[2]["loss"] < comparison[1]["loss"]
    assert comparison[0]["times faster"] > 0
    assert [line["picture"] for line in ripples] == ["gatys, 2 steps", "adain", "the contents", "the style, everywhere"]
    assert decode_image(evaluation.picture).rgb.shape[0] > 256


def test_evaluate_refuses_an_invalid_output_first(photos, monkeypatch):
    monkeypatch.setattr("imagemill.jobs.evaluate.evaluate", pytest.fail)
    with pytest.raises(ConfigError, match=r"scheme 'gs' is not supported\. Valid: file, s3"):
        show_evaluation({"task": "denoise", "input": str(photos), "output": "gs://x/y"}, "test", update_card=False)


def test_evaluate_of_random_network_updates_no_card(photos):
    config = EvaluateConfig(task="stylize", input=str(photos), checkpoint="random", params={"style": ["style.png"]})
    record = build_record(config, Evaluation(3, {}, [Measured("random", "style loss 1", [])], b""))
    assert record["checkpoints"] == [{"name": "random", "sha256": checkpoint.read("random")[0].sha256}]
    # The error comes before the evaluation starts: style.png does not exist.
    with pytest.raises(ConfigError, match="--update-card: checkpoint 'random': not found"):
        show_evaluation(config.model_dump(), "test", update_card=True)


def test_infinite_figures_are_null_in_json(tmp_path):
    folder = untrained(tmp_path, "digits")
    lines = [{"PSNR dB": np.inf, "ripple": np.nan, "values": 196}]
    evaluation = Evaluation(1, {"errors": lines}, [Measured(folder, "exact", lines)], b"", details={"more": lines})
    config = EvaluateConfig(task="compress", input="digits", checkpoint=folder)
    record = build_record(config, evaluation)
    checkpoint.write_metrics(folder, build_card_entry(config, 1, evaluation.measured[0]))
    card = json.loads((tmp_path / "digits" / "card.json").read_text(), parse_constant=pytest.fail)
    for table in (record["tables"]["errors"], record["tables"]["more"], card["metrics"][0]["table"]):
        assert table == [{"PSNR dB": None, "ripple": None, "values": 196}]
    assert lines[0]["PSNR dB"] == np.inf, "a table on a terminal may say so"


def test_evaluate_digits_refuses_wrong_sizes(digits, tmp_path):
    for path in (*Path(digits[0]).iterdir(), *Path(digits[1]).iterdir()):
        Image.open(path).crop((0, 0, 28, 30)).save(path)
    config = EvaluateConfig(task="compress", input=digits[0], fit=digits[1], checkpoint=untrained(tmp_path, "digits"))
    with pytest.raises(ConfigError, match=r"images are \(30, 28\) pixels high and wide; .*digits takes multiples of 4"):
        evaluate(config)


def test_evaluate_digits_against_pca(digits, tmp_path):
    test, train = digits
    config = EvaluateConfig(task="compress", input=test, fit=train, checkpoint=untrained(tmp_path, "digits"))
    evaluation = evaluate(config)
    model_line, *pcas = next(iter(evaluation.tables.values()))
    assert (model_line["parameters"], model_line["values"]) == (1477, 196)
    assert model_line["stored MSE"] == pytest.approx(model_line["MSE"], rel=0.1)
    # Each image has 49 distinct values, fewer than the 196 components of PCA.
    assert pcas[0]["values"] == 196
    assert pcas[0]["MSE"] < model_line["MSE"]
    assert pcas[1]["MSE"] <= model_line["MSE"]


def test_small_digits_have_no_ripple(digits, tmp_path):
    test, train = digits
    for path in (*Path(test).iterdir(), *Path(train).iterdir()):
        Image.open(path).crop((0, 0, 16, 16)).save(path)
    evaluation = evaluate(EvaluateConfig(task="compress", input=test, fit=train, checkpoint=untrained(tmp_path, "digits")))
    model_line = next(iter(evaluation.tables.values()))[0]
    assert "ripple" not in model_line
    assert all(np.isfinite(value) for value in model_line.values() if isinstance(value, float))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"task": "dream"}, ConfigError, "task = 'dream': unknown; valid: colorize, compress"),
        ({"input": None}, ConfigError, "input: missing"),
        ({"input": "/nowhere"}, StorageError, "does not exist"),
        ({"at": [-3]}, ConfigError, "params.sigma = -3"),
        ({"params": {"sigma": 5}}, ConfigError, "params.sigma: the evaluation sets it itself"),
        ({"task": "colorize", "at": [3]}, ConfigError, "no levels"),
        ({"task": "inpaint", "params": {"missing": "red"}}, ConfigError, "params.missing"),
        ({"checkpoint": "nowhere"}, CheckpointError, "'nowhere': not found"),
        ({"fit": "elsewhere"}, ConfigError, "fit: only for networks that compress digits"),
        ({"task": "compress", "checkpoint": "compress-small", "fit": "elsewhere"}, ConfigError, "must encode gray images"),
    ],
)
def test_evaluate_refuses_invalid_configs(change, error, message, photos):
    config = EvaluateConfig.model_validate({"task": "denoise", "input": str(photos)} | change)
    with pytest.raises(error, match=message):
        evaluate(config)


def test_evaluate_names_unreadable_images(photos):
    (photos / "broken.png").write_bytes(b"broken")
    with pytest.raises(ConfigError, match=r"broken\.png: UnknownFormat"):
        evaluate(EvaluateConfig(task="denoise", input=str(photos)))
    (photos / "broken.png").unlink()
    os.mkfifo(photos / "pipe.png")
    with pytest.raises(ConfigError, match=r"pipe\.png: BadName: a pipe.*an evaluation needs all images"):
        evaluate(EvaluateConfig(task="denoise", input=str(photos)))


def test_noise_depends_on_the_image_name(photos):
    colour, gray = (decode_image((photos / name).read_bytes()) for name in ("0.png", "gray.png"))
    assert np.array_equal(draw_noise("a", colour, 25), draw_noise("a", colour, 25))
    assert not np.array_equal(draw_noise("a", colour, 25), draw_noise("b", colour, 25))
    assert draw_noise("a", colour, 25).std() == pytest.approx(25, rel=0.02)
    noise = draw_noise("a", gray, 25)
    assert noise.shape == gray.rgb.shape
    assert np.ptp(noise, axis=2).max() == 0


def test_card_entry_names_styles_without_folders():
    config = EvaluateConfig(task="stylize", input="photos", params={"style": ["/home/somebody/swirls.png"], "beta": 10})
    entry = build_card_entry(config, 3, Measured("stylize-small", "one pass", []))
    assert entry["params"] == {"style": ["swirls.png"], "beta": 10}
