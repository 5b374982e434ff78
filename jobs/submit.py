"""Submit a run or a night to a Ray cluster as a job, follow its log to the end, and return its exit code."""

import ipaddress
import json
import logging
import os
import sys
import time
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from imagemill.jobs.submission import Submission
from imagemill.pipeline.cluster.connection import runtime_env
from imagemill.pipeline.errors import ConfigError, Interrupted, RunFailed
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from imagemill.pipeline.store_failures import store_failures

log = logging.getLogger("imagemill.submit")
LOCAL_DASHBOARD = "http://127.0.0.1:8265"
REQUEST_SECONDS = 60.0
SILENCE_SECONDS = 120.0
"""How long a cluster may leave requests unanswered before following the job ends."""
POLL_SECONDS = 1.0
STOP_SECONDS = 60
"""How long a stopped job may take to finish its writes; Ray's default of 3 s is too short."""
UNREACHABLE = (requests.RequestException, ConnectionError)


class Client(JobSubmissionClient):
    """Ray's client with a timeout for every request."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, **{"timeout": REQUEST_SECONDS, **options})


def submit_and_follow(submission: Submission, dashboard: str | None, insecure: bool, wait: bool) -> int:
    """Submit a run or a night and follow its log to the end.

    Args:
        submission: what the cluster runs.
        dashboard: URL of the cluster's dashboard; from the environment or local when absent.
        insecure: send the token over plain HTTP to another host.
        wait: follow the job to its end.

    Returns:
        The exit code of the run; 0 right after the submission without `wait`.

    Raises:
        ConfigError: if the cluster cannot be reached, or does not accept the job.
        RunFailed: if the job failed without an exit code, or the cluster stopped answering.
    """
    client, job_id = connect(dashboard, insecure), submission.job_id
    environment = runtime_env() | ({"py_modules": submission.code} if submission.code else {})
    environment["env_vars"] |= {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    try:
        client.submit_job(
            entrypoint=submission.entrypoint,
            submission_id=job_id,
            runtime_env=environment,
            metadata=submission.metadata,
        )
    except UNREACHABLE as e:
        raise ConfigError(f"{client.get_address()}: the job was not submitted: {type(e).__name__}") from None
    except (RuntimeError, ValueError) as e:
        reason = " ".join(str(e).split())[:300]
        raise ConfigError(f"{client.get_address()}: the job was not submitted: {reason}") from None
    log.info("submitted %s to %s", job_id, client.get_address())
    if not wait:
        print(job_id)
        log.info("%s", next_commands(client, job_id))
        return 0
    return follow(client, job_id)


def follow_to_end(dashboard: str | None, insecure: bool, run_id: str) -> int:
    """Follow a run that was submitted before, and return its exit code.

    Raises:
        ConfigError: if the cluster cannot be reached, or has no such job.
        RunFailed: if the job failed without an exit code, or the cluster stopped answering.
    """
    return follow(connect(dashboard, insecure), run_id)


def connect(dashboard: str | None, insecure: bool) -> Client:
    """Return a client of the cluster with this dashboard.

    Raises:
        ConfigError: if the dashboard cannot be reached, refuses the token, would get the token over plain HTTP, or runs
            another version of Ray.
    """
    environment = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    url = (dashboard or environment or LOCAL_DASHBOARD).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"dashboard {url}: not the URL of a dashboard. Give http(s)://HOST:8265.")
    if parts.scheme == "http" and not is_loopback(parts.hostname) and not insecure:
        raise ConfigError(
            f"dashboard {url}: plain HTTP to another host exposes the token. Use https or a tunnel "
            f"(ssh -L 8265:127.0.0.1:8265 {parts.hostname}, kubectl port-forward), or pass --insecure."
        )
    # Ray's client would prefer RAY_ADDRESS to its argument.
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        if requests.get(f"{url}/api/version", timeout=REQUEST_SECONDS, allow_redirects=False).status_code == 200:
            log.warning("dashboard %s: requires no token, so anyone who reaches it can run code on the cluster", url)
        client = Client(url)
        version = client._do_request("GET", "/api/version").json()["ray_version"]
    except AuthenticationError:
        raise ConfigError(
            f"dashboard {url}: refuses {token_source()}. Set RAY_AUTH_TOKEN to the token of the cluster."
        ) from None
    except (*UNREACHABLE, RuntimeError, ValueError, KeyError) as e:
        has_no_answer = isinstance(e, requests.Timeout | ConnectionError) or type(e) is requests.ConnectionError
        reason = "no answer" if has_no_answer else " ".join(str(e).split())[:200]
        raise ConfigError(f"dashboard {url}: cannot be reached: {reason}{missing_dashboard_hint(parts.hostname)}") from None
    if minor_version(version) != minor_version(ray.__version__):
        raise ConfigError(
            f"dashboard {url}: the cluster runs Ray {version}, this environment has Ray {ray.__version__}. Install the "
            "same version on both."
        )
    return client


def missing_dashboard_hint(host: str) -> str:
    """Say what to install if Ray on this machine cannot serve a dashboard; empty if it can, or if the host is another."""
    if not is_loopback(host) or find_spec("aiohttp_cors"):
        return ""
    package = f"ray[default]=={ray.__version__}"
    return f". A Ray cluster that is started from this environment has no dashboard. Install it: pip install '{package}'"


def token_source() -> str:
    """Say where the token of this process comes from."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return f"the token in {name}"
    return "the token of this user (~/.ray/auth_token)"


def is_loopback(host: str) -> bool:
    """Return whether a host name or IP address is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def minor_version(version: str) -> str:
    """Return the first two numbers of a version."""
    return ".".join(version.split(".")[:2])


def next_commands(client: Client, run_id: str) -> str:
    """Name the commands that follow a job and stop it."""
    return (
        f"follow it with `imagemill submit --dashboard {client.get_address()} --resume {run_id}`, "
        f"stop it with `ray job stop --address {client.get_address()} {run_id}`"
    )


def follow(client: Client, run_id: str) -> int:
    """Print the log of a job as it grows, and return the exit code of the run.

    Raises:
        ConfigError: if the cluster has no such job.
        RunFailed: if the job failed without an exit code, or the cluster stopped answering.
    """
    try:
        job = wait_for_job(client, run_id)
    except Interrupted:
        print(f"imagemill: the job continues: {next_commands(client, run_id)}", file=sys.stderr)
        return Interrupted.exit_code
    if job.driver_exit_code is not None:
        return int(job.driver_exit_code)
    # Ray reports no exit code for a driver that was stopped, or whose node was lost.
    code = recorded_exit_code(job, run_id)
    if code is not None:
        return code
    if job.status == JobStatus.STOPPED:
        return Interrupted.exit_code
    raise RunFailed(f"job {run_id}: {' '.join(str(job.message).split())[:500]}")


def wait_for_job(client: Client, run_id: str) -> Any:
    """Print the log of a job until the job ends, also across lost connections, and return Ray's details of the job.

    Raises:
        ConfigError: if the cluster has no such job.
        RunFailed: if the cluster stopped answering.
    """
    printed, last_answer = 0, time.monotonic()
    while True:
        try:
            job = client.get_job_info(run_id)
            text = client.get_job_logs(run_id)
            last_answer = time.monotonic()
        except (*UNREACHABLE, RuntimeError) as e:
            if "status code 404" in str(e):
                raise ConfigError(f"--resume {run_id}: {client.get_address()} has no such job. See: ray job list") from None
            if time.monotonic() - last_answer > SILENCE_SECONDS:
                raise RunFailed(
                    f"dashboard {client.get_address()}: no answer for {SILENCE_SECONDS:.0f} s. The job may still run: "
                    f"{next_commands(client, run_id)}"
                ) from None
            time.sleep(POLL_SECONDS)
            continue
        sys.stdout.write(text[printed:])
        sys.stdout.flush()
        printed = len(text)
        if job.status.is_terminal():
            return job
        time.sleep(POLL_SECONDS)


def recorded_exit_code(job: Any, run_id: str) -> int | None:
    """Return the exit code in run.json; None if OUTPUT cannot be read from this machine."""
    metadata = job.metadata or {}
    if "output" not in metadata:
        return None
    try:
        output = Store(metadata["output"], StorageConfig.model_validate_json(metadata["storage"]))
        return int(json.loads(output.read(f"runs/{run_id}/run.json"))["exit_code"])
    except store_failures(ValueError):
        return None
