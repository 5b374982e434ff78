"""A run as a Ray job: submitted to a cluster, followed to its end, and its exit code brought home."""

import ipaddress
import json
import logging
import os
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import ray
import requests
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from imagemill.pipeline.cluster.connection import runtime_env
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError, Interrupted, RunFailed
from imagemill.pipeline.schema import new_run_id
from imagemill.pipeline.storage import StorageConfig, Store
from imagemill.pipeline.store_failures import STORE_FAILURES

log = logging.getLogger("imagemill.submit")
LOCAL_DASHBOARD = "http://127.0.0.1:8265"
REQUEST_SECONDS = 60.0
SILENCE_SECONDS = 120.0
"""How long a cluster may not answer before it is given up."""
POLL_SECONDS = 1.0
STOP_SECONDS = 60
"""A job that is stopped has so long to put its OUTPUT in order; Ray's own 3 s are too short."""
UNREACHABLE = (requests.RequestException, ConnectionError)


class Client(JobSubmissionClient):
    """Ray's client, whose requests come to an end."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, **{"timeout": REQUEST_SECONDS, **options})


def submit_and_follow(config: RunConfig, address: str | None, insecure: bool, wait: bool) -> int:
    """Submit a run; gives its exit code, or 0 at once without `wait`.

    Raises: ConfigError for a cluster that cannot be reached or does not take it; RunFailed when it is no longer heard.
    """
    for key in ("input", "output"):
        place = getattr(config, key)
        if not place:
            raise ConfigError(f"{key} is missing: s3://bucket/prefix, or a folder that every node mounts")
        if "://" not in place and not os.path.isabs(place):
            raise ConfigError(f"{key} = {place!r}: on a cluster it is s3://bucket/prefix, or the full path of a shared disk")
    client = client_of(address, insecure)
    run_id = new_run_id()
    environment = runtime_env()
    environment["env_vars"] |= {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    # Ray shows all of this in its dashboard: secrets have no place in a config, and credentials are the nodes' own.
    metadata = {"output": str(config.output), "storage": config.storage.model_dump_json(exclude_defaults=True)}
    try:
        client.submit_job(
            entrypoint=entrypoint(config, run_id), submission_id=run_id, runtime_env=environment, metadata=metadata
        )
    except UNREACHABLE as e:
        raise ConfigError(f"{client.get_address()}: not submitted: {type(e).__name__}") from None
    except (RuntimeError, ValueError) as e:
        raise ConfigError(f"{client.get_address()}: not submitted: {' '.join(str(e).split())[:300]}") from None
    log.info("submitted %s to %s", run_id, client.get_address())
    if not wait:
        print(run_id)
        log.info("%s", how_to(client, run_id))
        return 0
    return followed(client, run_id)


def follow_to_end(address: str | None, insecure: bool, run_id: str) -> int:
    """Follow a run that was submitted before; gives its exit code. Raises: as `submit_and_follow`."""
    return followed(client_of(address, insecure), run_id)


def entrypoint(config: RunConfig, run_id: str) -> str:
    """The shell command of a run; its config is its standard input, so that nothing has to lie on the cluster."""
    values = config.model_dump(mode="json", exclude_defaults=True, exclude={"address"})
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"exec python -m imagemill run --run-id {run_id} -c /dev/stdin <<'END-{run_id}'\n{text}END-{run_id}"


def client_of(address: str | None, insecure: bool) -> Client:
    """A client of the cluster whose dashboard is at an address.

    Raises: ConfigError when it must not, or cannot, be talked to.
    """
    environment = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    address = (address or environment or LOCAL_DASHBOARD).rstrip("/")
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(f"address {address}: a job is submitted to the cluster's dashboard: http(s)://HOST:8265")
    if url.scheme == "http" and not loopback(url.hostname) and not insecure:
        raise ConfigError(
            f"address {address}: plain http to another host shows the token to all in between. Take https, or a tunnel "
            f"(ssh -L 8265:127.0.0.1:8265 {url.hostname}, kubectl port-forward); --insecure does it all the same"
        )
    # Ray's client would take RAY_ADDRESS rather than what it is given.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        if requests.get(f"{address}/api/version", timeout=REQUEST_SECONDS, allow_redirects=False).status_code == 200:
            log.warning("%s asks for no token: whoever reaches it runs what they like there", address)
        client = Client(address)
        theirs = client._do_request("GET", "/api/version").json()["ray_version"]
    except AuthenticationError:
        raise ConfigError(f"{address} refuses {token_origin()}; give the cluster's in RAY_AUTH_TOKEN") from None
    except (*UNREACHABLE, RuntimeError, ValueError, KeyError) as e:
        silent = isinstance(e, requests.Timeout | ConnectionError) or type(e) is requests.ConnectionError
        said = "no answer" if silent else " ".join(str(e).split())[:200]
        raise ConfigError(f"{address}: no Ray dashboard there that can be reached: {said}") from None
    if minor(theirs) != minor(ray.__version__):
        raise ConfigError(f"{address} runs Ray {theirs}, and this is Ray {ray.__version__}: take the same on both")
    return client


def token_origin() -> str:
    """Where the token comes from that this process has."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return f"the token in {name}"
    return "the token of this user (~/.ray/auth_token)"


def loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def how_to(client: Client, run_id: str) -> str:
    return (
        f"follow it with `imagemill submit --address {client.get_address()} --resume {run_id}`, "
        f"stop it with `ray job stop --address {client.get_address()} {run_id}`"
    )


def followed(client: Client, run_id: str) -> int:
    """Print the job's log as it grows; gives the run's exit code."""
    try:
        job = ended(client, run_id)
    except Interrupted:
        print(f"imagemill: the job goes on: {how_to(client, run_id)}", file=sys.stderr)
        return Interrupted.exit_code
    if job.driver_exit_code is not None:
        return int(job.driver_exit_code)
    # Ray knows no code of a driver that was stopped, or that went with its node.
    if (code := recorded(job, run_id)) is not None:
        return code
    if job.status == JobStatus.STOPPED:
        return Interrupted.exit_code
    raise RunFailed(f"job {run_id}: {' '.join(str(job.message).split())[:500]}")


def ended(client: Client, run_id: str) -> Any:
    """Follow a job, over breaks of the line too, to its end; gives what Ray knows of it. Raises: ConfigError, RunFailed."""
    shown, heard = 0, time.monotonic()
    while True:
        try:
            job = client.get_job_info(run_id)
            text = client.get_job_logs(run_id)
            heard = time.monotonic()
        except (*UNREACHABLE, RuntimeError) as e:
            if "status code 404" in str(e):
                raise ConfigError(f"{client.get_address()} knows no job {run_id}; see: ray job list") from None
            if time.monotonic() - heard > SILENCE_SECONDS:
                silence = f"no word from {client.get_address()} for {SILENCE_SECONDS:.0f} s; the job may go on"
                raise RunFailed(f"{silence}: {how_to(client, run_id)}") from None
            time.sleep(POLL_SECONDS)
            continue
        sys.stdout.write(text[shown:])
        sys.stdout.flush()
        shown = len(text)
        if job.status.is_terminal():
            return job
        time.sleep(POLL_SECONDS)


def recorded(job: Any, run_id: str) -> int | None:
    """The exit code in the run's own run.json, if OUTPUT can be read from here."""
    told = job.metadata or {}
    if "output" not in told:
        return None
    try:
        output = Store(told["output"], StorageConfig.model_validate_json(told["storage"]))
        return int(json.loads(output.read(f"runs/{run_id}/run.json"))["exit_code"])
    except (*STORE_FAILURES, ValueError):
        return None
