"""Test the commands that compare latents: search, duplicates and map."""

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagemill.jobs.duplicates import show_duplicates
from imagemill.jobs.map import WIDTH, write_map
from imagemill.jobs.search import show_search
from imagemill.pipeline.errors import ConfigError, StorageError, VerificationError
from imagemill.pipeline.output.neighbours import find_similar_groups, link_to_first, load_collection
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.reports.image_map import METHODS, draw_sample
from imagemill.pipeline.storage import Store
from tests.support.outputs import compressed

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def reencode(rgb: np.ndarray, **how: Any) -> np.ndarray:
    """Encode a photo with the options of Pillow's `save`, and decode it."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, **how)
    return np.asarray(Image.open(file))


@pytest.fixture(scope="module")
def output(crops: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return an output with coded latents of photos and copies, and plain latents of two images named like scripts."""
    first = crops[0]
    photos = {f"{number:02}.png": crop for number, crop in enumerate(crops[::5])}
    photos |= {
        "same.png": first,
        "recompressed.png": reencode(first, format="JPEG", quality=40),
        "larger.png": np.asarray(Image.fromarray(first).resize((192, 144), Image.Resampling.LANCZOS)),
        "mirrored.png": first[:, ::-1].copy(),
    }
    folder = tmp_path_factory.mktemp("search")
    compressed(folder, photos, "compress-small", fence=1, coding="coded")
    scripts = {f"plain <script>{number}.png": crops[1 + number] for number in range(2)}
    return compressed(folder, scripts, "compress-small", fence=2)


@pytest.fixture
def damaged_output(output: Store, tmp_path: Path) -> Store:
    """Return a copy of the output in which one latent is damaged."""
    shutil.copytree(output.root, tmp_path / "damaged")
    for path in (tmp_path / "damaged/results").iterdir():
        table = pq.read_table(path)
        names, crc = table["rel_path"].to_pylist(), table["latent_crc32"].to_pylist()
        crc = [value + (name == "01.png") for name, value in zip(names, crc, strict=True)]
        place = table.schema.get_field_index("latent_crc32")
        path.write_bytes(parquet_bytes(table.set_column(place, "latent_crc32", pa.array(crc, pa.int64())), 1))
    return Store(str(tmp_path / "damaged"))


def printed(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_search_ranks_copies_first(output, tmp_path, capsys, crops):
    changed_image = Image.fromarray(crops[0][6:90, 8:120]).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    changed_image.save(tmp_path / "query.jpg", quality=60)
    show_search(output, str(tmp_path / "query.jpg"), None, 5, str(tmp_path / "sheet.png"))
    groups_found = printed(capsys)
    assert {line[2] for line in groups_found[1:6]} == {
        "00.png",
        "same.png",
        "recompressed.png",
        "larger.png",
        "mirrored.png",
    }
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_search_by_id_leaves_out_the_query(output, capsys):
    show_search(output, None, "00.png", 3)
    groups_found = printed(capsys)
    assert groups_found[1][1:3] == ["1.000", "same.png"]
    assert "00.png" not in {line[2] for line in groups_found[1:4]}


def test_search_in_a_collection_of_one_image(tmp_path, capsys, crops):
    store = compressed(tmp_path, {"alone.png": crops[0]}, "compress-small")
    show_search(store, None, "alone.png", 3, str(tmp_path / "sheet.png"))
    assert len(printed(capsys)) == 2
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 20


def test_duplicates_tells_exact_from_near_copies(output, tmp_path, capsys):
    show_duplicates(output, 0.7, str(tmp_path / "copies.csv"), str(tmp_path / "sheet.png"))
    rows = pacsv.read_csv(tmp_path / "copies.csv").to_pylist()
    groups = {row["rel_path"]: row["group"] for row in rows}
    group = [row for row in rows if row["group"] == groups["same.png"]]
    assert (group[0]["copy"], group[0]["rel_path"]) == ("first", "larger.png")
    assert {"00.png", "same.png", "recompressed.png", "mirrored.png"} <= {row["rel_path"] for row in group}
    [exact_copy] = [row for row in rows if row["copy"] == "exact"]
    assert ({exact_copy["rel_path"], exact_copy["of"]}, exact_copy["similarity"]) == ({"00.png", "same.png"}, 1)
    copies = [row for row in rows if row["copy"] != "first"]
    assert all(0.7 <= row["similarity"] <= 1 for row in copies)
    assert {row["of"] for row in copies} <= groups.keys()
    assert (tmp_path / "sheet.png").exists()
    show_duplicates(output, 0.999)
    assert "1 exact copy," in capsys.readouterr().out


@pytest.mark.parametrize("at_a_time", [16_000_000, 5])
def test_link_to_first_takes_the_shortest_path(monkeypatch, at_a_time):
    """Among the shortest paths, the most similar last step wins."""
    monkeypatch.setattr("imagemill.pipeline.output.neighbours.COMPARED_PAIRS", at_a_time)
    angles = np.radians([0, 40, 20, 75, 41, -130])
    parents, similarities = link_to_first(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32), 0.75)
    # No image is within the threshold of the last one, as can happen by rounding at the threshold.
    assert parents.tolist() == [0, 0, 0, 4, 0, 0]
    np.testing.assert_allclose(similarities, np.cos(np.radians([0, 40, 20, 34, 41, 130])), atol=1e-6)


@pytest.mark.parametrize("at_a_time", [16_000_000, 3_000])
def test_find_similar_groups_equals_all_pairs(monkeypatch, at_a_time):
    monkeypatch.setattr("imagemill.pipeline.output.neighbours.COMPARED_PAIRS", at_a_time)
    vectors = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = find_similar_groups(vectors, 0.93)
    is_reachable = np.linalg.matrix_power((vectors @ vectors.T >= 0.93).astype(float), 40) > 0
    expected = {frozenset(np.flatnonzero(row).tolist()) for row in is_reachable if row.sum() > 1}
    assert {frozenset(group.tolist()) for group in groups} == expected
    assert [len(group) for group in groups] == sorted(map(len, expected), reverse=True)
    assert len(find_similar_groups(np.ones((500, 4), np.float32) / 2, 0.9)[0]) == 500


def test_search_warns_of_rows_with_other_parameters(output, tmp_path, capsys, caplog, crops):
    shutil.copytree(output.root, tmp_path / "out")
    # `search` uses the parameters of the newest run, which has a different step here.
    store = compressed(tmp_path, {"a.png": crops[7], "b.png": crops[8]}, "compress-small", fence=3, step=64)
    show_search(store, None, "a.png", 5)
    assert f"{len(load_collection(output).state)} of compress-small" in caplog.text
    stdout = capsys.readouterr().out
    assert "b.png" in stdout
    assert "00.png" not in stdout


def test_search_fits_whitening_to_digits(tmp_path, capsys):
    """A model without a fixed whitening gets a whitening fitted to the collection."""
    rng = np.random.default_rng(0)
    blobs = [np.asarray(Image.fromarray(rng.integers(0, 256, (7, 7), np.uint8)).resize((28, 28))) for _ in range(30)]
    digits = {f"{number:02}.png": np.stack([blob] * 3, 2) for number, blob in enumerate(blobs)}
    store = compressed(tmp_path, digits, "conv-mnist")
    Image.fromarray(reencode(digits["07.png"], format="JPEG", quality=60)).save(tmp_path / "query.png")
    show_search(store, str(tmp_path / "query.png"), None, 1, str(tmp_path / "sheet.png"))
    assert printed(capsys)[1][2] == "07.png"
    write_map(store, str(tmp_path / "map.html"), "pca")
    assert "Map of 30 images" in (tmp_path / "map.html").read_text()


def test_map_draws_far_images_at_the_edge(output, tmp_path, capsys, monkeypatch):
    """One image far from all others takes no space on the map, and has another mark."""

    def place(components, share):
        line = np.arange(len(components), dtype=float)
        return np.stack([np.where(line == 3, 1e6, line), line], 1), "Positions: a line."

    monkeypatch.setitem(METHODS, "pca", place)
    write_map(output, str(tmp_path / "map.html"), "pca")
    text = (tmp_path / "map.html").read_text()
    sentence = "Positions: a line. 1 image lies far outside, at the edge of the map: as a diamond, or with a dashed frame."
    assert sentence in text
    assert sentence in capsys.readouterr().out
    assert len(re.findall(r'<g class="p c\d+ far".*?<path class="dot"', text)) == 1
    positions = [float(x) for x in re.findall(r'<g class="p c\d+" [^>]*data-x="([^"]+)"', text)]
    assert max(positions) - min(positions) > 0.3 * WIDTH


def test_damaged_latents_are_named_and_left_out(damaged_output, tmp_path, capsys):
    with pytest.raises(VerificationError, match=r"1 image with damaged latents left out: 01\.png: latent does not match"):
        show_search(damaged_output, None, "00.png", 100)
    assert "01.png" not in capsys.readouterr().out
    with pytest.raises(VerificationError, match=r"01\.png"):
        show_search(damaged_output, None, "01.png", 3)
    with pytest.raises(VerificationError, match=r"01\.png"):
        show_duplicates(damaged_output, 0.7)
    with pytest.raises(VerificationError, match=r"01\.png"):
        write_map(damaged_output, str(tmp_path / "map.html"), "pca")
    assert "01.png" not in (tmp_path / "map.html").read_text()


def test_invalid_queries_are_config_errors(output, tmp_path):
    broken_file = tmp_path / "broken.jpg"
    broken_file.write_bytes(b"\xff\xd8\xff broken")
    for image, id_, message in (
        (None, None, "either"),
        ("a", "b", "either"),
        (str(broken_file), None, r"broken\.jpg: (UnknownFormat|BrokenImage)"),
        (str(tmp_path / "none.jpg"), None, "no such file"),
        (None, "none.png", "no image"),
    ):
        with pytest.raises(ConfigError, match=message):
            show_search(output, image, id_, 3)
    with pytest.raises(ConfigError, match=r"copies\.xlsx"):
        show_duplicates(output, 0.7, "copies.xlsx")
    with pytest.raises(ConfigError, match="pca, umap"):
        write_map(output, str(tmp_path / "map.html"), "tsne")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="is not an output"):
        show_search(Store(str(tmp_path / "empty")), None, "00.png", 3)


def test_draw_sample_is_bounded_and_repeatable(output):
    state = load_collection(output).state
    sample = draw_sample(state, most=4)
    assert len(sample) == 4
    np.testing.assert_array_equal(sample.row, draw_sample(state, most=4).row)
    tens = replace(state, part=np.repeat(np.arange(50, dtype=np.int32), 20), row=np.zeros(1000, np.int32))
    assert len(np.unique(draw_sample(tens, most=30, parts=3).part)) <= 3


@pytest.mark.external
@pytest.mark.parametrize("method", ["pca", pytest.param("umap", marks=pytest.mark.chaos)])
def test_map_page_draws_every_image_in_a_browser(output, tmp_path, method):
    if not BROWSER:
        pytest.skip("no chromium here: the page is not tried in a browser")
    if method == "umap":
        pytest.importorskip("umap")
    page = tmp_path / "map.html"
    write_map(output, str(page), method)
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "")
    count = len(load_collection(output).state)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [BROWSER, *flags, f"--user-data-dir={tmp_path}/profile", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True).stdout
    # The script sets this attribute last, so the whole script ran.
    assert f'data-ready="{count}"' in dom
    assert dom.count('class="p c') == count
    assert 'id="neighbours"><button' in dom
    assert "<script>0" not in dom
    assert json.dumps("plain <script>0.png")[1:-1].replace("<", "&lt;").replace(">", "&gt;") in dom
