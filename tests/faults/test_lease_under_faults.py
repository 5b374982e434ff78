"""A lease has one holder at a time and increasing tokens, while holders die and requests fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import S3

FAULTS = {"busy": 0.05, "reset": 0.03, "lost": 0.1, "corrupt_get": 0.1, "latency_s": 0.02}


@pytest.mark.parametrize("claims", [4, pytest.param(50, marks=pytest.mark.chaos)])
def test_lease_holders_that_die_never_overlap(s3: S3, tmp_path: Path, figure, claims: int) -> None:
    s3.faults(seed=claims, **FAULTS)
    script = Path(__file__).parents[1] / "support/contenders.py"
    command = [sys.executable, str(script), f"s3://{s3.bucket}/out", str(tmp_path / "lock"), str(claims), "0"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1000).stdout
    killed, *tokens = out.split()
    assert "overlap" not in tokens
    fences = list(map(int, tokens))
    assert len(fences) >= claims
    assert fences == sorted(set(fences))
    proxy_state = s3.seen()
    if claims >= 50:  # With few requests, the proxy may happen to inject no fault.
        assert int(killed) >= claims // 4
        assert proxy_state["counts"]["lost"]
    assert proxy_state["swallowed"] == []
    figure(
        f"{len(fences)} claims of a lease, {killed} holders killed, over a line that breaks and damages",
        f"never two holders, numbers rise to {fences[-1]}",
    )
