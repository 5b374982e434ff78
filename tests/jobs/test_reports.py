"""Test reports of runs and nights: every exit, every kind of source, hostile names and errors."""

import html
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagemill.jobs.map import write_map
from imagemill.jobs.night_page import write_night_page
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import StorageError, TooManyRejects
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.reports.charts import histogram, principal_components, project_latents
from imagemill.pipeline.reports.page import render_page
from imagemill.pipeline.reports.report import rewrite_report, write_run_report
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.servers import SECRET

HOSTILE = "<img src=x onerror=document.title='owned'>&\"'{{ 7*7 }}.png"
BROKEN = "<svg onload=document.title='owned'>.jpg"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: pages were not looked at")
WIDTHS = (360, 390, 1280)
TITLES = {"run": "compress: too many", "plain": "upscale: done", "night": "Night of 2026-03-01", "map": "Map of"}
"""Name of a page that browsers look at to the beginning of its title."""
LONG = f"{'camera' * 20}.png"
LOOK = """<script>addEventListener("load", () => parent.postMessage({
    title: document.title, inner: innerWidth, scroll: document.scrollingElement.scrollWidth,
    page: getComputedStyle(document.body).backgroundColor,
    loaded: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    broken: [...document.images].filter(i => i.complete && !i.naturalWidth).length, images: document.images.length,
}, "*"))</script>"""
FRAMES = """<!doctype html><body><script>
const seen = []; addEventListener("message", e => { seen.push(e.data); document.body.dataset.seen = JSON.stringify(seen) })
</script>FRAMES</body>"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, crops: list[np.ndarray]) -> Path:
    """Return a folder with `in`, and with `out` of two runs: one with too many rejects, one without new images."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "in").mkdir()
    for number, crop in enumerate(crops[:13]):
        Image.fromarray(crop).save(folder / "in" / f"{number}.png")
    Image.fromarray(crops[13]).save(folder / "in" / HOSTILE)
    (folder / "in" / BROKEN).write_bytes(b"no image")
    config = RunConfig(task="compress", input=f"{folder}/in", output=f"{folder}/out", max_reject_fraction=0, engine="local")
    with pytest.raises(TooManyRejects):
        run(config)
    assert run(config)["planned"] == 0
    return folder


def runs(output: Path) -> list[Path]:
    # The ids of two runs in one second have no order.
    folders = [path for path in (output / "runs").iterdir() if path.name not in ("lease", "replaced")]
    return sorted(folders, key=lambda path: json.loads((path / "run.json").read_text())["fence"])


def page(output: Path, number: int) -> str:
    return (runs(output)[number] / "report.html").read_text()


def pictures(text: str, side: str = "") -> int:
    return len(re.findall(rf'<img src="data:image/webp;base64,[^"]+" alt="{side}', text))


def test_report_of_a_failed_run_has_figures_and_pictures(run_folder):
    text = page(run_folder / "out", 0)
    for phrase in ("too many rejects", "UnknownFormat", "Random sample", "Lowest PSNR", "PSNR around the median",
                 "Latents in two dimensions", "Where the time went", "max_reject_fraction: 0.0", "exit 3:"):  # fmt: skip
        assert phrase in text, phrase
    # The run was local.
    assert "start Ray" not in text
    # The report shows eight random images, four with the lowest PSNR and four around the median.
    assert (pictures(text, "before: "), pictures(text, "after: ")) == (16, 16)
    assert len(re.findall(r'<circle|<path d="M\S+ \S+m0-5', text)) == 14


def test_report_says_that_nothing_is_new(run_folder):
    text = page(run_folder / "out", 1)
    assert "nothing new" in text
    assert "The last 2 runs" in text
    assert f"../{runs(run_folder / 'out')[0].name}/report.html" in text
    assert pictures(text) == 0


@pytest.mark.parametrize("number", [0, 1])
def test_report_imports_no_torch(run_folder, number):
    """Latents are decoded in a worker process, so that the driver of a run needs no torch."""
    code = (
        "import sys; from imagemill.pipeline.reports.report import rewrite_report\n"
        "from imagemill.pipeline.storage import Store\n"
        f"rewrite_report(Store({str(run_folder / 'out')!r}), {runs(run_folder / 'out')[number].name!r})\n"
        "print(sorted({'torch', 'ray', 'matplotlib'} & set(sys.modules)))"
    )
    before = pictures(page(run_folder / "out", number), "after: ")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert result.stdout.strip() == "[]"
    assert pictures(page(run_folder / "out", number), "after: ") == before


class Elements(HTMLParser):
    """Collect the elements of a page and their addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        attributes = dict(attrs)
        assert not [name for name in attributes if name.startswith("on")]
        keys = ("src", "srcset", "href", "xlink:href", "action", "data", "poster")
        self.addresses += [str(attributes[key]) for key in keys if key in attributes]


def test_report_escapes_names_and_loads_nothing(run_folder):
    text = page(run_folder / "out", 0)
    assert "&lt;svg onload=document.title=&#39;owned&#39;&gt;.jpg" in text
    assert "<img src=x" not in text
    assert "<svg onload" not in text
    assert "49.png" not in text
    assert "<script" not in text
    elements = Elements()
    elements.feed(text)
    assert [address for address in elements.addresses if not address.startswith("data:")] == []
    assert not elements.tags & {"script", "iframe", "object", "embed", "base", "form", "audio", "video"}
    assert not re.search(r"url\(|@import|<meta[^>]*refresh", text)
    assert "default-src &#39;none&#39;" in text


def test_rewrite_report_keeps_pictures(run_folder, tmp_path):
    """A rewritten report is identical; one with fewer pictures does not replace the existing report."""
    shutil.copytree(run_folder / "out", tmp_path / "out")
    output, first = Store(str(tmp_path / "out")), runs(run_folder / "out")[0].name
    assert output.read(rewrite_report(output, first)).decode() == page(run_folder / "out", 0)
    # One input image has changed, the others are missing.
    (run_folder / "in").rename(run_folder / "away")
    (run_folder / "in").mkdir()
    try:
        shutil.copy(run_folder / "away/1.png", run_folder / "in/0.png")
        with pytest.raises(StorageError, match=r"it shows 32 pictures and only 16 could be made now"):
            rewrite_report(output, first)
        assert page(tmp_path / "out", 0) == page(run_folder / "out", 0)
        (tmp_path / "out/runs" / first / "report.html").unlink()
        text = output.read(rewrite_report(output, first)).decode()
    finally:
        shutil.rmtree(run_folder / "in")
        (run_folder / "away").rename(run_folder / "in")
    assert (pictures(text, "before: "), pictures(text, "after: ")) == (0, 16)
    assert "the input image was moved, deleted or changed" in text
    # A killed run has no run.json.
    (tmp_path / "out/runs" / first / "run.json").unlink()
    assert "killed or still running" in output.read(rewrite_report(output, first)).decode()
    with pytest.raises(StorageError, match="has no run"):
        rewrite_report(output, "../../in")


def test_report_shows_no_file_outside_the_output(run_folder, tmp_path):
    shutil.copytree(run_folder / "out", tmp_path / "out")
    shutil.copy(run_folder / "in/0.png", tmp_path / "elsewhere.png")
    output, first = Store(str(tmp_path / "out")), runs(run_folder / "out")[0].name
    (tmp_path / "out/runs" / first / "report.html").unlink()
    for part in (tmp_path / "out/results").iterdir():
        table = pq.read_table(part)
        column = table.schema.get_field_index("output_uri")
        pq.write_table(table.set_column(column, "output_uri", pa.array(["../elsewhere.png"] * len(table))), part)
    text = output.read(rewrite_report(output, first)).decode()
    assert (pictures(text, "before: "), pictures(text, "after: ")) == (16, 0)


@pytest.mark.parametrize("column", ["content_sha256", "latent"])
def test_report_of_damaged_rows_has_no_results(run_folder, tmp_path, column):
    shutil.copytree(run_folder / "out", tmp_path / "out")
    output, first = Store(str(tmp_path / "out")), runs(run_folder / "out")[0].name
    (tmp_path / "out/runs" / first / "report.html").unlink()
    for part in (tmp_path / "out/results").iterdir():
        data, file = bytearray(part.read_bytes()), pq.ParquetFile(part).metadata
        for group in map(file.row_group, range(file.num_row_groups)):
            chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.split(".")[0] == column)
            start, size = chunk.data_page_offset, chunk.total_compressed_size
            data[start : start + size] = bytes(size)
        part.write_bytes(data)
    text = output.read(rewrite_report(output, first)).decode()
    assert pictures(text, "after: ") == 0
    assert "compress" in text


def test_failed_report_is_a_warning(run_folder, caplog):
    assert write_run_report(Store(str(run_folder / "out")), {"run_id": "20260101T000000Z-abcdef"}, set(), None) is None
    assert "run 20260101T000000Z-abcdef has no report: FileNotFoundError" in caplog.text


def write_tar(folder: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_parquet(folder: Path, files: dict[str, bytes]) -> None:
    pq.write_table(pa.table({"key": list(files), "image": list(files.values())}), folder / "rows.parquet")


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("task", "place", "params"),
    [
        ("denoise", write_tar, {}),
        ("colorize", write_parquet, {}),
        ("inpaint", write_files, {"missing": "red"}),
        ("stylize", write_files, {"size": 64}),
        ("compress", write_tar, {"coding": "coded"}),
        ("upscale", write_files, {}),
    ],
)
def test_report_shows_pictures_of_every_task(task, place, params, tmp_path, crops):
    (tmp_path / "in").mkdir()
    place(tmp_path / "in", {f"{number}.png": encode_rgb(crop, "PNG") for number, crop in enumerate(crops[:2])})
    if task == "stylize":
        Image.fromarray(crops[9]).save(tmp_path / "style.png")
        params = {**params, "style": [str(tmp_path / "style.png")]}
    record = run(RunConfig(task=task, input=f"{tmp_path}/in", output=f"{tmp_path}/out", params=params))
    content = (tmp_path / "out" / record["report"]).read_text()
    assert (pictures(content, "before: "), pictures(content, "after: ")) == (2, 2)
    assert rewrite_report(Store(f"{tmp_path}/out"), record["run_id"]) == record["report"]
    assert (tmp_path / "out" / record["report"]).read_text() == content


def test_rewrite_report_finds_a_relative_input(tmp_path, crops, monkeypatch):
    """The report can be rewritten from another working directory."""
    Store(f"{tmp_path}/in").write("one.png", encode_rgb(crops[0], "PNG"))
    monkeypatch.chdir(tmp_path)
    record = run(RunConfig(task="denoise", input="in", output=f"{tmp_path}/out"))
    monkeypatch.chdir("/")
    content = (tmp_path / "out" / record["report"]).read_text()
    assert pictures(content, "before: ") == 1
    rewrite_report(Store(f"{tmp_path}/out"), record["run_id"])
    assert (tmp_path / "out" / record["report"]).read_text() == content


def test_report_on_s3_holds_no_secret(rclone_bucket, crops):
    source, output = Store(f"{rclone_bucket}/in"), Store(f"{rclone_bucket}/out")
    source.write("one.png", encode_rgb(crops[0], "PNG"))
    record = run(RunConfig(task="denoise", input=source.url, output=output.url))
    text = output.read(record["report"]).decode()
    assert pictures(text) == 2
    assert SECRET not in text
    assert "done" in json.loads(output.read(f"runs/{record['run_id']}/run.json"))["exit_reason"]


def test_report_to_file_opens_without_the_bucket(rclone_bucket, crops, tmp_path, imagemill):
    """`--to` copies a report out of a bucket, or makes the page of a killed run, and writes nothing to the bucket."""
    source, output, page = Store(f"{rclone_bucket}/in"), Store(f"{rclone_bucket}/out"), tmp_path / "page.html"
    source.write("one.png", encode_rgb(crops[0], "PNG"))
    config = RunConfig(task="denoise", input=source.url, output=output.url)
    first, second = run(config)["run_id"], run(config)["run_id"]
    page.write_text("mine")
    code, _, err = imagemill("report", output.url, "--to", page)
    assert (code, "page.html: exists, and imagemill did not write it" in err) == (2, True)
    assert imagemill("report", output.url, "--to", page, "--overwrite")[0] == 0
    assert f"../{first}/report.html" in output.read(f"runs/{second}/report.html").decode()
    assert first in page.read_text()
    assert "report.html" not in page.read_text()

    assert imagemill("report", output.url, "--run-id", first, "--to", page)[0] == 0
    assert page.read_bytes() == output.read(f"runs/{first}/report.html")
    for name in ("run.json", "report.html"):
        output.delete(f"runs/{first}/{name}")
    before = {entry.path: entry.etag for entry in output.entries()}
    code, out, err = imagemill("report", output.url, "--run-id", first, "--to", page)
    assert (code, f"page.html: run {first}" in out, f"run {first} has no report.html" in err) == (0, True, True)
    assert pictures(page.read_text()) == 2
    assert "killed or still running" in page.read_text()
    assert f"{source.url} → {output.url}" in page.read_text()
    assert {entry.path: entry.etag for entry in output.entries()} == before


def test_run_over_an_empty_folder_has_a_report(tmp_path):
    (tmp_path / "in").mkdir()
    record = run(RunConfig(task="denoise", input=f"{tmp_path}/in", output=f"{tmp_path}/out"))
    assert "nothing new" in (tmp_path / "out" / record["report"]).read_text()


def test_render_page_redacts_secrets():
    signed_url = "https://me:hunter2@h.example/a.jpg?X-Amz-Credential=AKIA7&size=3&X-Amz-Signature=abc123&sig=q9 was gone"
    values = {
        "began": None,
        "headline": signed_url,
        "earlier": [],
        "runs": [],
        "without_input": [signed_url],
        "caught_up": [],
        "failures": [],
    }
    values |= {"mood": "bad", "seconds": 1, "code": 5, "totals": dict.fromkeys(("ok", "rejected", "done_before"), 0)}
    text = render_page("night.html", {**values, "began": np.datetime64("2026-01-01").astype(object)}).decode()
    assert "size=3" in text
    assert not [secret for secret in ("hunter2", "AKIA7", "abc123", "q9") if secret in text]


def test_page_policy_allows_only_its_script():
    policy = re.compile(r'Content-Security-Policy" content="([^"]+)"')
    policy_without_script, policy_with_script = (
        policy.search(render_page("base.html", {}, script).decode()) for script in ("", "document.title = 1")
    )
    assert policy_without_script
    assert policy_with_script
    assert "script-src" not in policy_without_script[1]
    assert "script-src &#39;sha256-" in policy_with_script[1]


@given(st.lists(st.floats(width=32), max_size=20))
def test_histogram_counts_every_finite_number(numbers):
    values = np.array(numbers, np.float64)
    histogram_bins, finite = histogram("x", values), values[np.isfinite(values)]
    assert sum(histogram_bins.counts) == len(finite) if histogram_bins else not len(finite)


@pytest.mark.parametrize("features", [np.zeros((3, 4)), np.eye(5), np.random.default_rng(0).normal(size=(400, 6))])
def test_project_latents_keeps_every_point(features):
    projection = project_latents([""] * len(features), features, np.arange(len(features), dtype=float))
    for axis in (projection.x, projection.y):
        assert len(axis) == len(features)
        assert min(axis) >= 0
        assert max(axis) <= 1
    assert 0 <= projection.explained <= 1.0001


def test_project_latents_draws_outliers_at_the_edge():
    """A few images far from all others do not squash the others; normally distributed images all lie inside."""
    features = np.random.default_rng(0).normal(size=(300, 2))
    names = [str(number) for number in range(300)]
    assert not any(project_latents(names, features, np.zeros(300)).outside)
    features[:3] = [[80, 0], [0, -90], [70, 70]]
    projection = project_latents(names, features, np.zeros(300))
    assert [name for name, outside in zip(names, projection.outside, strict=True) if outside] == ["0", "1", "2"]
    inside = np.array([projection.x, projection.y])[:, 3:]
    assert np.ptp(inside, axis=1).min() > 0.3


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (3, 3)])
def test_principal_components_match_singular_vectors(shape):
    features = np.random.default_rng(1).normal(size=shape)
    axes, share = principal_components(features, 2)
    left, scale, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(axes), np.abs(left * scale)[:, :2], atol=1e-6)
    np.testing.assert_allclose(share[:2], (scale**2 / (scale**2).sum())[:2], atol=1e-9)


def chromium(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [str(CHROMIUM), *common, f"--user-data-dir={profile}", "--enable-logging=stderr", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)


def measure_page(page: Path, folder: Path, dark: bool) -> list[dict[str, Any]]:
    """Measure a copy of a page at each width, in frames because a window cannot be narrow enough."""
    text = page.read_text().replace("default-src &#39;none&#39;", "script-src 'unsafe-inline'; default-src 'none'")
    (folder / "copy.html").write_text(text.replace('loading="lazy"', "").replace("</body>", f"{LOOK}</body>"))
    frames = "".join(f'<iframe src="copy.html" width="{width}" height="900" frameborder="0"></iframe>' for width in WIDTHS)
    (folder / "frames.html").write_text(FRAMES.replace("FRAMES", frames))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    result = chromium(folder / "frames.html", folder / "profile", "--virtual-time-budget=5000", "--dump-dom", scheme)
    match = re.search(r'data-seen="([^"]*)"', result.stdout)
    assert match, result.stdout[-500:]
    return sorted(json.loads(html.unescape(match[1])), key=lambda look: look["inner"])


@pytest.fixture(scope="module")
def pages(run_folder: Path) -> dict[str, Path]:
    """Return the report of the failed run, one without a quality column, the page of a night, and a map."""
    run_page = runs(run_folder / "out")[0] / "report.html"
    record = json.loads((run_page.parent / "run.json").read_text())
    line = {"job": HOSTILE, "day": None, "output": record["output"], "exit_code": 3, "exit_reason": 40 * "long reason"}
    line |= {key: record[key] for key in ("found", "done_before", "planned", "ok", "rejected")}
    empty_line = {**line, "job": "nothing", "planned": 0, "exit_code": 0, "exit_reason": "done"}
    lines = [{**line, "report": str(run_page)}, empty_line]
    summary = {"began": "2026-03-01T01:00:00", "ended": "2026-03-01T01:10:00", "exit_code": 3, "runs": lines}
    folder = run_folder / "upscale"
    folder.mkdir()
    (folder / LONG).write_bytes((run_folder / "in/0.png").read_bytes())
    upscaled = run(RunConfig(task="upscale", input=f"{folder}", output=f"{run_folder}/upscaled", engine="local"))
    write_map(Store(str(run_folder / "out")), str(run_folder / "map.html"), "pca")
    return {
        "run": run_page,
        "plain": run_folder / "upscaled" / upscaled["report"],
        "night": Path(str(write_night_page(Store(str(run_folder / "nights")), summary))),
        "map": run_folder / "map.html",
    }


@pytest.mark.external
@browser
@pytest.mark.parametrize("name", TITLES)
def test_page_fits_phone_and_desktop(name, pages, tmp_path):
    """No page scrolls sideways or loads anything, in light and dark mode."""
    grounds = set()
    for dark in (False, True):
        looks = measure_page(pages[name], tmp_path, dark)
        assert [look["inner"] for look in looks] == list(WIDTHS)
        for look in looks:
            assert look["scroll"] <= look["inner"]
            assert look["title"].startswith(TITLES[name])
            assert look["loaded"] == []
            assert (look["broken"], look["images"] > 0) == (0, name != "night")
        grounds |= {look["page"] for look in looks}
    # The page has a light and a dark background.
    assert len(grounds) == 2


@pytest.mark.external
@browser
@pytest.mark.parametrize("name", TITLES)
def test_page_logs_no_browser_error(name, pages, tmp_path):
    result = chromium(pages[name], tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in result.stderr, result.stderr
    assert "</html>" in result.stdout


def test_night_page_links_to_reports(pages):
    links = re.findall(r'<a href="([^"]+)"', pages["night"].read_text())
    assert [(pages["night"].parent / link).resolve() for link in links] == [pages["run"].resolve()]
    assert (pages["night"].parent / "index.html").read_bytes() == pages["night"].read_bytes()
