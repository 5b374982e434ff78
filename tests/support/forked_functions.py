"""Functions that tests run in forked processes. They import nothing, so that the processes start at once."""

import time
from multiprocessing.connection import Connection


def sleep(connection: Connection) -> None:
    """Do not notice the end of the driver."""
    time.sleep(600)


def wait_for_message(connection: Connection) -> None:
    connection.recv()


def end(connection: Connection) -> None:
    """End at once, without an answer."""
