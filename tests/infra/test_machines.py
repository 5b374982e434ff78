"""Check the container image, systemd units, scripts and the AWS cluster, each with its own linter."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from imagemill.pipeline.errors import ConfigError, Deadline, NightFailed, TooManyRejects, VerificationError
from tests.support.manifests import ROOT

INFRA = ROOT / "infra"
HOPELESS = {ConfigError.exit_code, TooManyRejects.exit_code, VerificationError.exit_code, NightFailed.at_deadline}
BIN = Path(sys.executable).parent


def run_linter(*command: object) -> tuple[int, str]:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    return result.returncode, result.stdout + result.stderr


def copy_with_error(path: Path, folder: Path, right: str, wrong_config: str) -> Path:
    """Return a copy of a file in which `wrong` replaces `right`."""
    text = path.read_text()
    assert right in text
    copy = folder / path.name
    copy.write_text(text.replace(right, wrong_config))
    return copy


@pytest.mark.external
def test_dockerfile_passes_its_linter(tmp_path: Path) -> None:
    dockerfile = INFRA / "container/Dockerfile"
    assert run_linter(BIN / "hadolint", dockerfile) == (0, "")
    code, findings = run_linter(BIN / "hadolint", copy_with_error(dockerfile, tmp_path, "CMD [", "CDM ["))
    assert code != 0
    assert "unexpected" in findings


def test_image_copies_existing_files() -> None:
    dockerfile = (INFRA / "container/Dockerfile").read_text()
    copied_paths = [word for line in dockerfile.splitlines() if line.startswith("COPY") for word in line.split()[2:-1]]
    assert {"constraints.txt", "src", "models", "pipeline", "jobs"} < set(copied_paths)
    assert all((ROOT / name).exists() for name in copied_paths)
    ignored = (INFRA / "container/Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied_paths)
    assert "USER 1000:100" in dockerfile


@pytest.mark.external
def test_scripts_pass_their_linter(tmp_path: Path) -> None:
    script = INFRA / "slurm/imagemill.sbatch"
    assert run_linter(BIN / "shellcheck", script) == (0, "")
    assert "SC2086" in run_linter(BIN / "shellcheck", copy_with_error(script, tmp_path, '"$head"', "$head"))[1]


def units(folder: Path) -> list[Path]:
    """Return the units as they would be installed on a machine with this repository."""
    for unit in (INFRA / "systemd").iterdir():
        text = unit.read_text().replace("/srv/imagemill/.venv/bin/imagemill", str(BIN / "imagemill"))
        (folder / unit.name).write_text(text.replace("/srv/imagemill", str(ROOT)))
    return sorted(folder.iterdir())


@pytest.mark.external
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not there: units are not checked")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    unit_files = units(tmp_path)
    assert run_linter("systemd-analyze", "verify", *unit_files) == (0, "")
    service = tmp_path / "imagemill-nightly.service"
    code, findings = run_linter("systemd-analyze", "security", "--offline=true", "--threshold=25", service)
    assert code == 0, findings
    service.write_text(service.read_text().replace("PrivateTmp", "PrivateTemp"))
    assert "'PrivateTemp'" in run_linter("systemd-analyze", "verify", service)[1]


def test_systemd_retries_only_what_may_succeed() -> None:
    unit = (INFRA / "systemd/imagemill-nightly.service").read_text()
    assert f"\nSuccessExitStatus={Deadline.exit_code}\n" in unit
    assert f"\nRestartPreventExitStatus={' '.join(map(str, sorted(HOPELESS)))}\n" in unit


def test_airflow_example_handles_exit_codes() -> None:
    tree = ast.parse((INFRA / "airflow/imagemill_dag.py").read_text())
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert constants["SUCCESS"] == (0, Deadline.exit_code)
    assert set(constants["NO_RETRY"]) == HOPELESS


@pytest.mark.external
def test_ray_accepts_the_aws_cluster() -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((INFRA / "aws/cluster.yaml").read_text())
    prepared_config = prepare_config(config)
    prepared_config["cluster_synced_files"] = []
    validate_config(prepared_config)
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert all("RAY_AUTH_MODE=token" in config[f"{kind}_start_ray_commands"][1] for kind in ("head", "worker"))
    wrong_config = {**prepared_config, "idle_timeout_minute": 5}
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config(wrong_config)


@pytest.mark.external
def test_aws_accepts_the_policies() -> None:
    import boto3
    from moto import mock_aws

    with mock_aws():
        iam = boto3.client("iam", region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s")
        for name in ("buckets", "autoscaler"):
            iam.create_policy(PolicyName=name, PolicyDocument=(INFRA / f"aws/{name}.json").read_text())
        wrong_config = json.loads((INFRA / "aws/buckets.json").read_text())
        wrong_config["Statement"][0]["Actions"] = wrong_config["Statement"][0].pop("Action")
        with pytest.raises(iam.exceptions.MalformedPolicyDocumentException):
            iam.create_policy(PolicyName="wrong", PolicyDocument=json.dumps(wrong_config))
