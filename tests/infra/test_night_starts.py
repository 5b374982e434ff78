"""Run the CronJob's script with the real kubectl against a server that supports only RayJobs."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.manifests import KUBERNETES, built, of_kind, pod_specs, problems

pytestmark = pytest.mark.external
API = "/apis/ray.io/v1"
ROOT_GROUPS = {"groups": [{"name": "ray.io", "versions": [{"groupVersion": "ray.io/v1", "version": "v1"}]}]}
RAYJOBS = {"name": "rayjobs", "singularName": "rayjob", "namespaced": True, "kind": "RayJob", "verbs": ["get", "create"]}
ANSWERS: dict[str, dict[str, Any]] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", **ROOT_GROUPS},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    API: {"kind": "APIResourceList", "groupVersion": "ray.io/v1", "resources": [RAYJOBS]},
}


@pytest.fixture
def rayjobs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the URL of a server, and its RayJobs by name, including the suspended template."""
    pattern = of_kind(built(KUBERNETES / "overlays/cpu"), "RayJob")["imagemill-nightly"]
    server_fields = {"resourceVersion": "7", "uid": "5f0c", "creationTimestamp": "2026-03-01T00:00:00Z"}
    jobs_by_name = {
        "imagemill-nightly": {**pattern, "metadata": pattern["metadata"] | server_fields, "status": {"jobId": "x"}}
    }

    class Server(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            resource = ANSWERS.get(path) or jobs_by_name.get(path.removeprefix(f"{API}/namespaces/imagemill/rayjobs/"))
            self.answer(200, resource) if resource else self.answer(
                404, {"kind": "Status", "reason": "NotFound", "code": 404}
            )

        def do_POST(self) -> None:
            job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = job["metadata"]["name"]
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": f"rayjobs {name}"}
            if job["metadata"].keys() & {"uid", "resourceVersion"}:
                self.answer(400, status | {"reason": "BadRequest", "code": 400})
            elif name in jobs_by_name:
                self.answer(409, status | {"reason": "AlreadyExists", "code": 409})
            else:
                jobs_by_name[name] = job
                self.answer(201, job)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", jobs_by_name
    server.shutdown()


def start_night(url: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    entries = {"cluster": {"server": url}}, {"cluster": "c", "user": "u", "namespace": "imagemill"}, {"token": "t"}
    config = {
        "clusters": [{"name": "c", **entries[0]}],
        "contexts": [{"name": "x", "context": entries[1]}],
        "users": [{"name": "u", "user": entries[2]}],
        "current-context": "x",
    }
    (folder / "config").write_text(yaml.safe_dump(config))
    [pod] = pod_specs(of_kind(built(KUBERNETES / "overlays/cpu"), "CronJob")["imagemill-nightly"])
    shell, flags, script = pod["containers"][0]["command"]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "KUBECONFIG": str(folder / "config"),
    }
    command = [shell, flags, script.replace("/tmp/", f"{folder}/")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_night_is_started_once(rayjobs: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, jobs_by_name = rayjobs
    first, second = start_night(url, tmp_path), start_night(url, tmp_path)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "AlreadyExists" in second.stderr
    [name] = jobs_by_name.keys() - {"imagemill-nightly"}
    assert name.startswith("imagemill-nightly-20")
    assert jobs_by_name[name]["spec"] == jobs_by_name["imagemill-nightly"]["spec"] | {"suspend": False}
    assert problems({key: value for key, value in jobs_by_name[name].items() if key != "status"}) == []


def test_night_that_cannot_start_is_a_failure(rayjobs: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, jobs_by_name = rayjobs
    jobs_by_name.clear()
    result = start_night(url, tmp_path)
    assert result.returncode != 0
    assert "NotFound" in result.stderr
