"""The bucket policy allows exactly the requests that a night makes."""

import io
import json
import tarfile
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagemill.jobs.night_config import NightlyConfig
from imagemill.jobs.nightly import show_night
from imagemill.jobs.verify import show_verified
from imagemill.pipeline.storage import Store
from tests.support.run_processes import make_photos
from tests.support.servers import S3

STATEMENTS = json.loads((Path(__file__).parents[2] / "infra/aws/buckets.json").read_text())["Statement"]
ACTIONS = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}


def action_of(request: str) -> tuple[str, str]:
    """Return the permission and the resource of a request "METHOD /bucket/key ?parameters"."""
    method, path, *parameters = request.split(" ")
    bucket, _, key = path.strip("/").partition("/")
    assert bucket, f"{request}: the list of all buckets is asked for"
    assert method in ACTIONS, request
    if key:
        assert not {"uploads", "uploadId", "acl", "tagging"} & set(parameters), request
        return ACTIONS[method], f"arn:aws:s3:::{bucket}/{key}"
    assert method in ("GET", "HEAD"), request
    assert not {"location", "versioning", "policy"} & set(parameters), request
    return "s3:ListBucket", f"arn:aws:s3:::{bucket}"


def allowed(action: str, resource: str) -> bool:
    return any(
        action in statement["Action"] and any(fnmatchcase(resource, pattern) for pattern in statement["Resource"])
        for statement in STATEMENTS
    )


@pytest.fixture
def job(s3: S3, tmp_path: Path) -> dict[str, Any]:
    """Return a dated job over two buckets on a server that records requests."""
    for bucket in ("photos-in", "photos-out"):
        (tmp_path / "s3/data" / bucket).mkdir()
    job = {"task": "denoise", "engine": "local", "storage": {"endpoint_url": s3.endpoint}, "name": "clean"}
    return job | {"input": "s3://photos-in/scans/{date}", "output": "s3://photos-out/clean/{date}"}


def nights(s3: S3, job: dict[str, Any], count: int) -> set[tuple[str, str]]:
    """Run nights and a verification; return the permissions that their requests need."""
    s3.faults()
    for _ in range(count):
        show_night(NightlyConfig(jobs=[job], catch_up=1), date(2026, 3, 1))
    show_verified(Store("s3://photos-out/clean/2026-03-01", s3.storage))
    return {action_of(request) for request in s3.seen()["requests"]}


def test_policy_is_minimal_for_a_night_without_images(s3: S3, job: dict[str, Any]) -> None:
    """Check the requests for lists, leases, a shard and records; workers and writers make none here."""
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("notes.txt"))
    Store("s3://photos-in/scans/2026-03-01", s3.storage).write("notes.tar", shard.getvalue())
    needed = nights(s3, job, 4)
    assert {(action, resource) for action, resource in needed if not allowed(action, resource)} == set()
    granted_actions = {
        (action, pattern) for statement in STATEMENTS for action in statement["Action"] for pattern in statement["Resource"]
    }
    assert {
        (a, pattern) for a, pattern in granted_actions if not any(a == b and fnmatchcase(r, pattern) for b, r in needed)
    } == set()
    assert not allowed("s3:PutObject", "arn:aws:s3:::photos-in/scans/a.png")
    assert not allowed("s3:GetObject", "arn:aws:s3:::photos-in-other/a.png")


@pytest.mark.chaos
def test_policy_suffices_for_a_night(s3: S3, job: dict[str, Any], crops: list[np.ndarray]) -> None:
    make_photos(Store("s3://photos-in/scans/2026-03-01", s3.storage), 4, crops)
    needed = nights(s3, job, 2)
    assert any("images" in resource for _, resource in needed)
    assert {(action, resource) for action, resource in needed if not allowed(action, resource)} == set()
