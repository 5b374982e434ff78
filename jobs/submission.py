"""What `imagemill submit` sends to a cluster: the command of a run or of a night, its config, and the code of users."""

import os
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from imagemill.jobs.night_config import NightlyConfig, NotifyConfig, merge_job_configs, plan_night
from imagemill.jobs.notification import VARIABLE
from imagemill.models.type_checks import require_value
from imagemill.pipeline.config import RunConfig, validate
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.schema import new_run_id
from imagemill.pipeline.user_code import INSTALLED, read_user_code

PUBLIC_WEBHOOK = re.compile(rf"(https?://([\w.:[\]-]|{VARIABLE.pattern})*)?({VARIABLE.pattern}|[/?&=#])*", re.IGNORECASE)
"""A webhook in which at most the host is literal."""
PUBLIC_HEADER = re.compile(rf"([A-Za-z]+ )?({VARIABLE.pattern})+")
"""A header in which at most the word before the token is literal: Bearer ${TOKEN}."""


@dataclass(frozen=True)
class Submission:
    """A command that a cluster runs.

    Attributes:
        job_id: id of the Ray job; of a run, also the id of the run.
        arguments: arguments of `imagemill`. The command reads its config from its standard input.
        values: the config.
        code: folders of user code, which Ray ships.
        metadata: what Ray stores with the job, so that its exit code can be read from run.json.
    """

    job_id: str
    arguments: str
    values: dict[str, Any]
    code: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def entrypoint(self) -> str:
        """The shell command. The config is part of the command, so no file has to be on the cluster."""
        text = yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True)
        end = f"END-{self.job_id}"
        return f"exec python -m imagemill {self.arguments} -c /dev/stdin <<'{end}'\n{text}{end}"


def run_submission(config: RunConfig) -> Submission:
    """Return the submission of a run. Its `address` is left out, because the job runs on the cluster.

    Raises:
        ConfigError: if the input, the output or the code cannot be used on a cluster.
    """
    job_id, values = new_run_id(), config.model_dump(mode="json", exclude_defaults=True, exclude={"address"})
    check_places(values)
    # Ray shows the command and the metadata in its dashboard. Neither holds a secret: a config has none, and the nodes have
    # their own credentials.
    metadata = {"output": str(config.output), "storage": config.storage.model_dump_json(exclude_defaults=True)}
    return Submission(job_id, f"run --run-id {job_id}", values, unpack_code(values), metadata)


def night_submission(values: dict[str, Any], path: str) -> Submission:
    """Return the submission of a night. Each job gets the keys of the file that its key `config` names.

    Args:
        values: the config of the night.
        path: file of the config, which the files of jobs are relative to.

    Raises:
        ConfigError: if the night cannot run, or needs something that a cluster does not have.
    """
    config, folder = validate(NightlyConfig, values, path), Path(path).parent
    plan_night(config, datetime.now().date(), folder)
    check_secrets(config.notify)
    if config.report:
        check_place("report", config.report)
    jobs, code = [], []
    for job in merge_job_configs(config, folder):
        job = {key: value for key, value in job.items() if key != "address"}
        check_places(job, f"{job['name']}: ")
        code += unpack_code(job)
        jobs.append(job)
    values = config.model_dump(mode="json", exclude_defaults=True) | {"jobs": jobs}
    return Submission(new_run_id(), "nightly", values, sorted(set(code)))


def check_places(values: dict[str, Any], prefix: str = "") -> None:
    """Raise ConfigError if the input or output of a job is missing or is a relative path."""
    for key in ("input", "output"):
        check_place(f"{prefix}{key}", values.get(key))


def check_place(key: str, place: str | None) -> None:
    """Raise ConfigError if a location is missing or has no meaning on the nodes of a cluster."""
    if not place:
        raise ConfigError(f"{key}: missing. Give s3://bucket/prefix, or a folder that every node mounts.")
    if "://" not in place and not os.path.isabs(place):
        raise ConfigError(
            f"{key}={place!r}: a relative path has no meaning on a cluster. Give s3://bucket/prefix, or the full path "
            "of a shared disk."
        )


def check_secrets(notify: NotifyConfig) -> None:
    """Raise ConfigError if the webhook or a header may hold a secret, which Ray's dashboard would show."""
    # A text does not show whether it is a secret, so literal text is allowed only where no secret belongs.
    values = {"notify.webhook": (notify.webhook or "", PUBLIC_WEBHOOK)}
    values |= {f"notify.headers.{name}": (value, PUBLIC_HEADER) for name, value in notify.headers.items()}
    for key, (value, public) in values.items():
        if not public.fullmatch(value):
            raise ConfigError(
                f"{key}: Ray's dashboard would show the value. Write ${{NAME}} instead of the value, and set the variable "
                "NAME on the cluster"
            )


def unpack_code(values: dict[str, Any]) -> list[str]:
    """Replace the folder of user code in a config by the name that it has on the cluster, and return what Ray ships."""
    if values.get("code") in (None, INSTALLED):
        return []
    folder = require_value(read_user_code(values["code"]), "the code").unpack()
    # Ray puts the folder that holds this one on the module path of the job, where read_user_code finds it.
    values["code"] = folder.name
    return [str(folder)]
