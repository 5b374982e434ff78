"""`models import` of networks that fill holes, and runs of `inpaint` with them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from imagemill.jobs.evaluations import inpaint
from imagemill.jobs.evaluations.evaluation import EvaluateConfig
from imagemill.models import checkpoint as checkpoints
from imagemill.models.batches import to_uint8_images
from imagemill.models.routes.spandrel_route import load_descriptor
from tests.support.imported_models import build_dncnn
from tests.support.imported_networks import lama, run_worker_with_small_lama, shrink_lama, spandrel_card, write_network

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shrink_lama(monkeypatch.setattr)
    monkeypatch.setattr("imagemill.pipeline.engines.local_engine.run_worker", run_worker_with_small_lama)
    # Modules of the current folder are not found in workers, and these workers need `tests`.
    monkeypatch.chdir(tmp_path)


def save_program(file: Path) -> None:
    """Save LaMa as a TorchScript program, which is how its weights are published."""
    torch.jit.trace(lama(), (torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64))).save(file)


@pytest.fixture
def scans(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    """Return a folder with three photos of two sizes and their masks."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, crop in enumerate([crops[0], crops[1], crops[2][:57, :91]]):
        mask = np.zeros(crop.shape[:2], np.uint8)
        mask[20:40, 10 + 10 * number : 50] = 255
        Image.fromarray(crop).save(folder / f"{number}.png")
        Image.fromarray(mask).save(folder / f"{number}.mask.png")
    return folder


@pytest.mark.parametrize("name", ["big-lama.pt", "lama.safetensors"])
def test_import_lama_and_fill_holes(name: str, imagemill: Command, scans: Path, tmp_path: Path) -> None:
    source, dest = tmp_path / name, tmp_path / "models/lama"
    if name.endswith(".pt"):
        save_program(source)
    else:
        safetensors.torch.save_file(lama().state_dict(), source)
    code, out, err = imagemill("models", "import", source, dest)
    assert code == 0, err
    assert f"next: imagemill inpaint PHOTOS OUTPUT --checkpoint {dest}" in out
    card, weights = checkpoints.read(str(dest))
    assert (card.route, card.task, card.architecture) == ("spandrel", "inpaint", "LaMa")
    assert (card.contract.mask, card.contract.tiling, card.contract.size_multiple) == (True, "never", 8)
    assert card.contract.dtypes == ("float32",), "its Fourier transforms take no other format on a GPU"
    assert card.contract.bytes_per_pixel > 100
    code, out, err = imagemill("models", "show", dest)
    assert code == 0, err
    assert "1 where a pixel is missing" in out
    code, _, err = imagemill("inpaint", scans, tmp_path / "out", "--checkpoint", dest, "--workers", "1")
    assert code == 0, err
    descriptor = load_descriptor({k: v.float() for k, v in safetensors.torch.load(weights).items()}).eval()
    for file in sorted(scans.glob("?.png")):
        rgb, mask = (np.array(Image.open(path)) for path in (file, file.with_suffix(".mask.png")))
        [written] = (tmp_path / "out").rglob(file.name)
        filled = np.array(Image.open(written))
        x = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            expected = to_uint8_images(descriptor(x, torch.from_numpy(mask)[None, None].float() / 255))[0]
        assert np.array_equal(filled[mask == 0], rgb[mask == 0])
        assert np.abs(filled.astype(int) - expected)[mask > 0].max() <= 1


def test_import_refuses_an_inverted_mask(imagemill: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = lama()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "lama.safetensors")
    monkeypatch.setattr(type(network), "forward", lambda self, image, mask: image * mask)
    code, _, err = imagemill("models", "import", "--quiet", tmp_path / "lama.safetensors", tmp_path / "dest")
    assert code == 2
    assert "must take a mask that is 1 where a pixel is missing" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "dest").exists()


def test_import_refuses_another_task_for_lama(imagemill: Command, tmp_path: Path) -> None:
    safetensors.torch.save_file(lama().state_dict(), tmp_path / "lama.safetensors")
    arguments = (tmp_path / "lama.safetensors", tmp_path / "dest", "--task", "restore")
    code, _, err = imagemill("models", "import", "--quiet", *arguments)
    assert code == 2
    assert "LaMa fills the pixels that a mask marks, so it cannot do this task. Valid: inpaint" in err


def test_program_with_other_objects_is_refused(imagemill: Command, tmp_path: Path) -> None:
    """A program whose archive names a function that weights do not need."""

    class Mapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: dict[str, int] = {"a": 1}
            self.device = torch.device("cpu")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.sizes["a"]

    torch.jit.script(Mapped()).save(tmp_path / "mapped.pt")
    code, _, err = imagemill("models", "import", "--quiet", tmp_path / "mapped.pt", tmp_path / "dest")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "mapped.pt" in err


def test_wrong_networks_are_refused_before_a_run(imagemill: Command, scans: Path, tmp_path: Path) -> None:
    """In one line, and without a file in the output."""
    masked = write_network(tmp_path / "lama", spandrel_card(lama(), "LaMa", "inpaint", mask=True))
    plain = write_network(tmp_path / "dncnn", spandrel_card(build_dncnn(), "DnCNN", "denoise", channels=1))
    for task, checkpoint, message in (
        ("denoise", masked, "Use `imagemill inpaint`"),
        ("restore", masked, "Use `imagemill inpaint`"),
        ("inpaint", plain, "Use `imagemill denoise` or `imagemill restore`"),
    ):
        code, _, err = imagemill(task, scans, tmp_path / "out", "--checkpoint", checkpoint)
        assert code == 2
        assert message in err
        assert len(err.splitlines()) == 1
    code, _, err = imagemill("inpaint", scans, tmp_path / "out", "--checkpoint", masked, "--missing", "red")
    assert code == 2
    assert "params.missing='red'" in err
    assert not (tmp_path / "out").exists()


def test_evaluation_leaves_out_lost_planes(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with masks fills whole pixels, so it is measured with the other kinds of damage."""
    for mask in scans.glob("*.mask.png"):
        mask.unlink()
    masked = write_network(tmp_path / "lama", spandrel_card(lama(), "LaMa", "inpaint", mask=True))
    damages = {name: inpaint.DAMAGES[name] for name in ("16-px blocks 15 %", "red plane")}
    monkeypatch.setattr(inpaint, "DAMAGES", damages)
    result = inpaint.evaluate_inpaint(EvaluateConfig(task="inpaint", input=str(scans), checkpoint=masked))
    [lines] = result.tables.values()
    assert [line["damage"] for line in lines] == ["16-px blocks 15 %"]
    assert 0 < lines[0]["ours in holes dB"] < 40
