"""Test docs/analysis.md: each reader in its table, and the worked example."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from imagemill.pipeline import read_latents
from tests.support.analysts_page import run_page
from tests.support.outputs import compressed
from tests.support.reading_tools import FORMATS, READERS, found, in_page

EXAMPLE = Path(__file__).parents[2] / "docs" / "analysis_example.py"


@pytest.mark.external
@pytest.mark.usefixtures("ray_session")
def test_table_of_readers_is_current(tmp_path: Path) -> None:
    table = found(tmp_path)
    assert "| no" not in table, table
    assert table.count("| yes ") >= 2 * (len(READERS) + len(FORMATS)), table
    assert in_page() == table


@pytest.mark.usefixtures("ray_session")
def test_latents_become_a_ray_dataset(tmp_path: Path, crops: list[np.ndarray]) -> None:
    output = compressed(tmp_path, {f"{n}.png": crop[:28, : 28 + 4 * n] for n, crop in enumerate(crops[:3])})
    codes = read_latents(output.url, columns=["rel_path"])
    rows = {row["rel_path"]: row for row in codes.ray().take_all()}
    assert {name: list(row["latent_shape"]) for name, row in rows.items()} == {
        "0.png": [4, 7, 7], "1.png": [4, 7, 8], "2.png": [4, 7, 9],
    }  # fmt: skip
    assert len(rows["2.png"]["latent"]) == 4 * 7 * 9


def test_analysis_example_runs(tmp_path: Path, crops: list[np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    pieces = {f"{n}-{x}.png": crop[30:58, x : x + 28] for n, crop in enumerate(crops[:12]) for x in range(0, 100, 10)}
    output = compressed(tmp_path, pieces, rows_per_part=200)
    runpy.run_path(str(EXAMPLE))["main"](output.url, str(tmp_path / "in"))
    out = capsys.readouterr().out
    assert "PCA" in out
    assert "nearest to" in out


@pytest.mark.external
def test_code_blocks_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", sys.argv)
    page = run_page(tmp_path)
    blocks = re.findall(r"```(?:sql|python|sh run)\n", page)
    assert len(blocks) == page.count("```text\n") > 8
    assert "Traceback" not in page
