"""The output files of the benchmark: every run as JSON, the Markdown page, the chart."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

from chart import draw
from figures import AT_IMAGES, Spread, Summary, number, spread, table
from rounds import CORES, OWN_DECODER, Bench

VERSIONS = ("torch", "ray", "daft", "pyarrow", "pillow", "numpy")


def machine() -> dict[str, str]:
    """Describe the machine and the versions of the libraries."""
    cpu = next((line.partition(":")[2].strip() for line in lines_of("/proc/cpuinfo") if line.startswith("model name")), "?")
    flags = next((line for line in lines_of("/proc/cpuinfo") if line.startswith("flags")), "").split()
    memory = next((line.split()[1] for line in lines_of("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "cpu": cpu,
        "cores": str(CORES),
        "instructions": " ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags),
        "memory": f"{int(memory) / 1e6:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in VERSIONS),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "set": ", ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith(("OMP_", "MALLOC_"))) or "nothing",
    }


def lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def leave(bench: Bench, about: dict[str, str], fixed: dict[str, Spread | None], rounds: int) -> None:
    """Write bench.json, bench.md and bench.png."""
    raw = {
        "machine": about,
        "runs": [run.as_json() for run in bench.runs],
        "limits": bench.limits,
        "fixed": {name: vars(value) for name, value in fixed.items() if value},
    }
    (bench.out / "bench.json").write_text(json.dumps(raw, indent=1))
    (bench.out / "bench.md").write_text(report(bench, about, fixed, rounds))
    limits = {w: spread(answer["images_per_s"] for answer in answers) for w, answers in bench.limits.items()}
    titles = {name: peer.title for name, peer in bench.peers.items()}
    note = (
        f"{about['cpu']}, {about['cores']} cores, {about['instructions']}; {about['versions']}; medians of {rounds} rounds"
    )
    loads = {name: load.title for name, load in bench.loads.items()}
    draw(bench.out / "bench.png", bench.runs, bench.summaries(), limits, loads, titles, note)


def report(bench: Bench, about: dict[str, str], fixed: dict[str, Spread | None], rounds: int) -> str:
    """Return the Markdown page."""
    lines = ["# Benchmark tables", "", *(f"- {name}: {value}" for name, value in about.items()), ""]
    lines += [
        f"Medians of {rounds} interleaved rounds (minimum–maximum). Each run is a new process with an empty output.",
        "",
        "- `images/s inside the run`: from the first finished image to the last.",
        "- `by slope`: from whole processes with two numbers of images.",
        f"- `limit`: fetch, decode, model, encode and write measured separately, in {CORES} processes of one thread each.",
        "- `÷ limit`: the rate inside the run divided by the limit. `Imagemill ÷ it`: Imagemill's rate divided by this one.",
        "- `peak PSS`: the most memory that the whole process tree held at once.",
        "- `off float32`: the difference between the outputs and a float32 reference.",
    ]
    limits = {w: spread(answer["images_per_s"] for answer in answers) for w, answers in bench.limits.items()}
    for workload, summaries in bench.summaries().items():
        lines += [
            "",
            f"## {workload}: {bench.loads[workload].title}",
            "",
            *section(bench, workload, summaries, limits[workload]),
        ]
    if fixed:
        said = ", ".join(f"{name} {value.text()}" for name, value in fixed.items() if value)
        lines += ["", "## Fixed costs", "", f"Whole processes, s: {said}."]
    return "\n".join(lines) + "\n"


def section(bench: Bench, workload: str, summaries: list[Summary], limit: Spread | None) -> list[str]:
    """Return the lines of one workload."""
    unit = "relative" if bench.references[workload][1] is None else "dB"
    ours = next((one for one in summaries if one.peer == "imagemill"), None)
    titles = {name: peer.title for name, peer in bench.peers.items()}
    lines = [*table(summaries, titles, limit, ours, unit), ""]
    answers = bench.limits[workload]
    parts = {name: spread(answer["ms"][name] for answer in answers) for name in answers[0]["ms"]}
    each = ", ".join(f"{name} {number(part.median)}" for name, part in parts.items() if part)
    lines.append(f"Limit, ms an image in one process: {each}.")
    if ours and ours.stage_ms:
        stages = ", ".join(f"{name} {number(ms)}" for name, ms in ours.stage_ms.items())
        lines.append(f"Imagemill's stages, ms an image (time of its threads, waiting included): {stages}.")
    if own := [titles[one.peer] for one in summaries if bench.peers[one.peer].own_decoder]:
        lines.append(
            f"{', '.join(own)}: uses its own JPEG decoder, so its pixels differ before the model; it is allowed "
            f"{OWN_DECODER:g} times the tolerance."
        )
    if workload != "latents":
        return lines
    at = [(one, one.seconds_at(AT_IMAGES)) for one in summaries]
    seconds = [
        f"{titles[one.peer]} {number(value)}{'' if one.images == AT_IMAGES else ' (by slope)'}" for one, value in at if value
    ]
    if seconds:
        lines.append(f"Whole process at {AT_IMAGES:,} images, s: {', '.join(seconds)}.")
    runs = [run for run in bench.runs if (run.workload, run.peer) == ("latents", "imagemill") and run.fine]
    peaks = [(n, spread(r.peak_pss_mb for r in runs if r.images == n)) for n in sorted({run.images for run in runs})]
    if peaks:
        lines.append(f"Imagemill's peak PSS in MB, by images: {', '.join(f'{n:,}: {p.text()}' for n, p in peaks if p)}.")
    return lines
