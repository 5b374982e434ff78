"""The reference from the code: `python docs/reference.py` writes docs/cli.md and docs/schemas/*.json.

`tests/test_house.py` fails when they are not what the code says. An editor checks a YAML that names its schema in a first
line `# yaml-language-server: $schema=…/docs/schemas/run.json`.
"""

import json
import subprocess
import sys
from pathlib import Path

from imagemill.jobs.evaluations.evaluation import EvaluateConfig
from imagemill.jobs.nightly import NightlyConfig
from imagemill.jobs.training.config import TrainConfig
from imagemill.models.tasks import TASKS
from imagemill.pipeline.config import RunConfig

ROOT = Path(__file__).parent.parent
CONFIGS = {"run": RunConfig, "nightly": NightlyConfig, "train": TrainConfig, "evaluate": EvaluateConfig}


def cli() -> str:
    """The help of all commands as Markdown, by typer."""
    command = [sys.executable, "-m", "typer", "imagemill.jobs.cli", "utils", "docs", "--name", "imagemill"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return "<!-- by docs/reference.py -->\n" + "\n".join(line.rstrip() for line in said.splitlines()).strip() + "\n"


def schemas() -> dict[str, str]:
    """JSON Schema of each YAML, and of the group `params` of each task, by the name of its file."""
    models = CONFIGS | {f"params_{name}": task.Params for name, task in TASKS.items()}
    return {f"{name}.json": json.dumps(model.model_json_schema(), indent=1) + "\n" for name, model in models.items()}


def written() -> dict[Path, str]:
    """Every file of the reference and what is in it."""
    files = {ROOT / "docs/cli.md": cli()}
    return files | {ROOT / "docs/schemas" / name: text for name, text in schemas().items()}


if __name__ == "__main__":
    for path, text in written().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
