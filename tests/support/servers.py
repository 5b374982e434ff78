"""S3 servers as processes that can be killed and restarted, alone or behind a proxy that injects faults."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig

KEY, SECRET = "imagemill", "imagemill-secret"
CONTROL = "/-/faults"
# Tests must reach their servers directly, not through a proxy of the environment.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


given: set[int] = set()
"""Ports that were handed out but may not be in use yet; the kernel would hand them out again."""


def free_port() -> int:
    while True:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = int(s.getsockname()[1])
        if port not in given:
            given.add(port)
            return port


def environment_of(endpoint: str) -> dict[str, str]:
    """Return the environment variables that a process needs to use a test server."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        # rclone refuses the trailing checksums that newer clients send by default.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@dataclass
class Server:
    """A process that listens on a port, and on the same port after a restart."""

    command: list[str]
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            assert self.process.poll() is None, self.command
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        pytest.fail(f"{self.command[1]} does not answer")

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


def rclone(folder: Path, *options: str) -> Server:
    """Return an S3 server over folder/data without buckets."""
    (folder / "data").mkdir(parents=True)
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "rclone"), "serve", "s3", str(folder / "data"), "--addr", f"127.0.0.1:{port}",
        "--config", str(folder / "rclone.conf"), "--cache-dir", str(folder / "cache"), "--vfs-cache-mode", "off",
        "--log-file", str(folder / "log"), *options,
    ]  # fmt: skip
    return Server(command, port)


@dataclass
class S3:
    """A bucket behind a proxy. `faults(…)` sets the faults that the proxy injects."""

    behind: Server
    front: Server
    bucket: str

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.front.port}"

    @property
    def storage(self) -> StorageConfig:
        return StorageConfig(endpoint_url=self.endpoint)

    def store(self, path: str) -> Store:
        return Store(f"s3://{self.bucket}/{path}", self.storage)

    def faults(self, **wanted: Any) -> None:
        """Set the faults and reset the counts."""
        request = urllib.request.Request(self.endpoint + CONTROL, json.dumps(wanted).encode(), method="PUT")
        DIRECT.open(request, timeout=60).close()
        # The restarted proxy gets the same faults.
        self.front.command[-1] = json.dumps(wanted)

    def seen(self) -> dict[str, Any]:
        """Return what the proxy did since `faults` or its start."""
        with DIRECT.open(self.endpoint + CONTROL, timeout=60) as answer:
            seen: dict[str, Any] = json.load(answer)
            return seen
