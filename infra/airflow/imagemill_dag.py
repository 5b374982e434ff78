"""An example for Airflow 3: imagemill by its command line, whose exit codes say what to do next.

Exit 0 and 7 (stopped at its deadline) are success, 2, 3 and 6 fail at once, since the same again would end the same, and so
does 8, since the night is over; all others are tried again: what was committed stays, so a retry does what is left.
"""

import subprocess
from datetime import datetime, timedelta

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

IMAGEMILL = "/srv/imagemill/.venv/bin/imagemill"
DONE = (0, 7)
HOPELESS = {
    2: "bad configuration",
    3: "too many rejects",
    6: "verification failed",
    8: "a run failed before the deadline",
}


def imagemill(*arguments: str) -> None:
    """Run the command; its log is the task's."""
    code = subprocess.run([IMAGEMILL, *arguments], check=False).returncode
    if code in HOPELESS:
        raise AirflowFailException(f"imagemill: {HOPELESS[code]} (exit {code})")
    if code not in DONE:
        raise AirflowException(f"imagemill: exit {code}")


@dag(
    schedule="30 22 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # imagemill finds missed days itself
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5), "execution_timeout": timedelta(hours=8)},
)
def imagemill_nightly():
    @task
    def night():
        imagemill("nightly", "-c", "/etc/imagemill/night.yaml", "--until", "06:00")

    @task
    def check():
        imagemill("verify", "s3://photos-out/codes")

    night() >> check()


imagemill_nightly()
