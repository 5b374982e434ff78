"""Without --overwrite, a command that would replace a foreign file exits with 2 before any write."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagemill.jobs.night_page import write_night_page
from imagemill.jobs.train import train
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.file_record import FOLDER
from imagemill.pipeline.storage import Store
from tests.support.outputs import compressed

MINE = b"mine"


@pytest.fixture
def output(tmp_path: Path, pieces: dict[str, np.ndarray]) -> Path:
    """Return the output of a run over the eight images in the folder in/."""
    return Path(compressed(tmp_path / "made", pieces).root)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_decode_replaces_its_own_files(imagemill, output, tmp_path):
    dest = tmp_path / "decoded"
    assert imagemill("decode", output, dest, "--where", "rel_path < '4'")[0] == 0
    assert imagemill("decode", output, dest)[0] == 0
    old_contents = contents(dest)
    assert imagemill("decode", output, dest)[0] == 0
    images = {name for name in contents(dest) if not name.startswith(FOLDER)}
    assert images == {f"{n}.png" for n in range(8)}
    assert all(contents(dest)[name] == old_contents[name] for name in images)


def test_decode_replaces_no_file_of_the_user(imagemill, output, tmp_path):
    """Files that existed earlier and files that the user changed are not replaced; other files are ignored."""
    dest = tmp_path / "decoded"
    dest.mkdir()
    (dest / "notes.txt").write_bytes(MINE)
    (dest / "7.png").write_bytes(MINE)
    code, _, err = imagemill("decode", output, dest)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{dest}/7.png: exists, and imagemill did not write it" in err
    assert contents(dest) == {"7.png": MINE, "notes.txt": MINE}
    assert imagemill("decode", output, dest, "--overwrite")[0] == 0
    assert (dest / "7.png").read_bytes() != MINE

    Image.open(dest / "3.png").rotate(90).save(dest / "3.png")
    old_contents = contents(dest)
    assert imagemill("decode", output, dest)[0] == 2
    assert contents(dest) == old_contents
    assert (dest / "notes.txt").read_bytes() == MINE


@pytest.mark.parametrize("place", ["in", "in/below/it", ".", "link", "out/images", "out/results/x"])
def test_decode_refuses_inputs_and_folders_of_runs(imagemill, output, place):
    parent = output.parent
    (parent / "link").symlink_to(parent / "in")
    # No input file has the name of a decoded image, so the command must refuse the folder itself.
    for path in sorted((parent / "in").iterdir()):
        path.rename(path.with_suffix(".tmp"))
    old_contents = contents(parent)
    code, _, err = imagemill("decode", output, parent / place)
    assert (code, err.count("\n")) == (2, 1)
    assert "Choose another folder" in err
    assert contents(parent) == old_contents


def test_decode_knows_sources_without_runs(imagemill, output, tmp_path):
    """The sources are read from the rows, also in an output without runs/ and in an export."""
    assert imagemill("export", output, tmp_path / "export")[0] == 0
    shutil.rmtree(output / "runs")
    old_contents = contents(output.parent / "in")
    for place in (output, tmp_path / "export"):
        code, _, err = imagemill("decode", place, output.parent / "in")
        assert code == 2
        assert f"{output.parent}/in: is an input of {place}. Choose another folder" in err
    assert contents(output.parent / "in") == old_contents


def test_decode_to_a_bucket_replaces_no_file_of_the_user(imagemill, output, moto_bucket):
    dest = Store(f"{moto_bucket}/decoded")
    dest.write("5.png", MINE)
    code, _, err = imagemill("decode", output, dest.url)
    assert code == 2
    assert f"{dest.url}/5.png: exists" in err
    assert [entry.path for entry in dest.entries()] == ["5.png"]
    dest.delete("5.png")
    for _ in range(2):
        assert imagemill("decode", output, dest.url)[0] == 0
    assert len(list(dest.entries())) == 9


def test_killed_decode_can_be_repeated(imagemill, pieces, tmp_path):
    images = {f"{n}.png": np.roll(pieces["0.png"], n, axis=1) for n in range(200)}
    output, dest = compressed(tmp_path, images, rows_per_part=50), tmp_path / "decoded"
    process = subprocess.Popen([sys.executable, "-m", "imagemill", "decode", output.url, str(dest)])
    while not list(dest.glob("*.png")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert imagemill("decode", output.url, dest)[0] == 0
    assert len(list(dest.glob("*.png"))) == 200


FILES = {
    "map": ["map", "{output}", "{file}.html"],
    "sheet of search": ["search", "{output}", "--id", "0.png", "--sheet", "{file}.png"],
    "sheet of duplicates": ["duplicates", "{output}", "--threshold", "0", "--sheet", "{file}.png"],
    "duplicates.csv": ["duplicates", "{output}", "--export", "{file}.csv"],
    "failures.csv": ["failures", "{output}", "--export", "{file}.csv"],
    "failures.jsonl": ["failures", "{output}", "--export", "{file}.jsonl"],
    "failures.parquet": ["failures", "{output}", "--export", "{file}.parquet"],
}


@pytest.mark.parametrize("command", FILES)
def test_commands_keep_a_file_of_the_user(imagemill, output, tmp_path, command):
    words = [word.format(output=output, file=tmp_path / "file") for word in FILES[command]]
    target = Path(words[-1])
    target.write_bytes(MINE)
    code, _, err = imagemill(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{target}: exists, and imagemill did not write it" in err
    assert target.read_bytes() == MINE
    assert not (tmp_path / FOLDER).exists()
    assert imagemill(*words, "--overwrite")[0] == 0
    assert target.read_bytes() != MINE
    # A file that imagemill wrote is replaced without --overwrite, until the user changes it.
    assert imagemill(*words)[0] == 0
    with target.open("ab") as file:
        file.write(b" ")
    assert imagemill(*words)[0] == 2


def test_evaluate_keeps_files_of_the_user(imagemill, photos, tmp_path):
    (tmp_path / "evaluation.png").write_bytes(MINE)
    code, _, err = imagemill("evaluate", "--task", "denoise", "--input", photos, "--output", tmp_path)
    assert code == 2
    assert f"{tmp_path}/evaluation.png: exists" in err
    assert contents(tmp_path).keys() == {"evaluation.png", *(f"photos/{n}.png" for n in range(3))}


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json"])
def test_train_keeps_a_checkpoint_of_the_user(tiny, tmp_path, name):
    config = tiny("denoise")
    (tmp_path / "out/tiny-denoise").mkdir(parents=True)
    (tmp_path / "out/tiny-denoise" / name).write_bytes(b"{}")
    with pytest.raises(ConfigError, match=r"contains a checkpoint that no training wrote\..* --overwrite"):
        train(config)
    assert contents(tmp_path / "out") == {f"tiny-denoise/{name}": b"{}"}


@pytest.mark.parametrize("mine", ["styles/glass.png", "contact_sheet.png", "denoised/a.txt", "compressed/runs/x/y"])
def test_demo_keeps_files_of_the_user(imagemill, tmp_path, mine):
    Store(f"{tmp_path}/demo").write(mine, MINE)
    code, _, err = imagemill("demo", tmp_path / "demo")
    assert (code, err.count("\n")) == (2, 1)
    assert str(tmp_path / "demo" / mine.split("/")[0]) in err
    assert contents(tmp_path) == {f"demo/{mine}": MINE}


def test_demo_keeps_an_output_of_other_images(imagemill, output, tmp_path):
    shutil.copytree(output, tmp_path / "demo/compressed")
    old_contents = contents(tmp_path)
    assert imagemill("demo", tmp_path / "demo")[0] == 2
    assert contents(tmp_path) == old_contents


def test_night_keeps_an_index_of_the_user(tmp_path, caplog):
    summary = {"began": "2026-03-01T22:30:00", "ended": "2026-03-01T23:00:00", "exit_code": 0, "runs": []}
    place, index = Store(str(tmp_path)), tmp_path / "index.html"
    write_night_page(place, summary)
    # A night of an early version wrote no record and was killed before it replaced index.html.
    shutil.rmtree(tmp_path / FOLDER)
    place.write("night-2026-03-02T223000.html", b"")
    write_night_page(place, summary | {"began": "2026-03-03T22:30:00"})
    assert index.read_bytes() == (tmp_path / "night-2026-03-03T223000.html").read_bytes()
    assert not caplog.text

    index.write_bytes(MINE)
    assert write_night_page(place, summary | {"began": "2026-03-04T22:30:00"}) == place.uri("night-2026-03-04T223000.html")
    assert index.read_bytes() == MINE
    assert f"{index}: exists" in caplog.text


@pytest.mark.parametrize("mine", ["latents/part-00000.txt", "notes.txt"])
def test_repeated_export_deletes_only_files_of_the_export(imagemill, output, tmp_path, mine):
    export = Store(f"{tmp_path}/export")
    for name in ("UNFINISHED", "latents/part-00000.parquet", mine):
        export.write(name, MINE)
    code, _, err = imagemill("export", output, export.url)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{export.uri(mine)}: is not part of an export" in err
    assert contents(tmp_path / "export")[mine] == MINE
    export.delete(mine)
    assert imagemill("export", output, export.url)[0] == 0
