"""An example DAG for Airflow 3 that runs the imagemill command every night and maps its exit codes.

Exit codes 0 and 7 (stopped at the deadline) are success. 2, 3 and 6 fail at once, because a retry would end the same
way, and so does 8, because the night is over. All others are retried: committed rows stay, so a retry processes the
remaining images.
"""

import subprocess
from datetime import datetime, timedelta

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

IMAGEMILL = "/srv/imagemill/.venv/bin/imagemill"
SUCCESS = (0, 7)
NO_RETRY = {
    2: "bad configuration",
    3: "too many rejects",
    6: "verification failed",
    8: "a run failed before the deadline",
}


def imagemill(*arguments: str) -> None:
    """Run imagemill and raise an Airflow error that retries the task only where a retry can help."""
    code = subprocess.run([IMAGEMILL, *arguments], check=False).returncode
    if code in NO_RETRY:
        raise AirflowFailException(f"imagemill: {NO_RETRY[code]} (exit {code})")
    if code not in SUCCESS:
        raise AirflowException(f"imagemill: exit {code}")


@dag(
    schedule="30 22 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # `catch_up` in night.yaml finds missed days
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5), "execution_timeout": timedelta(hours=8)},
)
def imagemill_nightly():
    """Run the night, then verify one of its outputs."""

    @task
    def night():
        imagemill("nightly", "-c", "/etc/imagemill/night.yaml", "--until", "06:00")

    @task
    def check():
        imagemill("verify", "s3://photos-out/codes")

    night() >> check()


imagemill_nightly()
