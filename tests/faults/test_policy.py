"""The policy for the buckets against what a night asks of a store."""

import json
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from commands import make_photos
from servers import S3

from jobs.inspect import show_verified
from jobs.nightly import NightlyConfig, show_night
from pipeline.storage import Store

STATEMENTS = json.loads((Path(__file__).parents[2] / "infra/aws/buckets.json").read_text())["Statement"]
ACTIONS = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}


def action_of(request: str) -> tuple[str, str]:
    """The right that a request needs, and on what: of "METHOD /bucket/key ?parameters"."""
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


@pytest.mark.usefixtures("ray_session")
def test_a_night_needs_what_the_policy_gives_and_no_less(s3: S3, tmp_path: Path, crops: list[np.ndarray]) -> None:
    for bucket in ("photos-in", "photos-out"):
        (tmp_path / "s3/data" / bucket).mkdir()
    make_photos(Store("s3://photos-in/scans/2026-03-01", s3.storage), 4, crops)
    s3.faults()
    job = {"task": "denoise", "storage": {"endpoint_url": s3.endpoint}, "name": "clean"}
    job |= {"input": "s3://photos-in/scans/{date}", "output": "s3://photos-out/clean/{date}"}
    for _ in range(2):
        show_night(NightlyConfig(jobs=[job], catch_up=1), date(2026, 3, 1))
    show_verified(Store("s3://photos-out/clean/2026-03-01", s3.storage))
    needed = {action_of(request) for request in s3.seen()["requests"]}
    assert len(needed) > 10
    assert {(action, resource) for action, resource in needed if not allowed(action, resource)} == set()
    # Nothing is given that is not needed.
    given = {
        (action, pattern) for statement in STATEMENTS for action in statement["Action"] for pattern in statement["Resource"]
    }
    unused = {(a, pattern) for a, pattern in given if not any(a == b and fnmatchcase(r, pattern) for b, r in needed)}
    assert unused == set()
    assert not allowed("s3:PutObject", "arn:aws:s3:::photos-in/scans/a.png")
    assert not allowed("s3:GetObject", "arn:aws:s3:::photos-in-other/a.png")
