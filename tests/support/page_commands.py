"""Run the commands of a documentation page, and write what they print into the page.

python -m tests.support.page_commands DEMO PAGE.md …

Run each block that begins with ```sh run, in order and in one shell, in a temporary folder with a copy of DEMO (what
`make demo` leaves). Replace the ```text block below each of them by the standard output of its commands.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

BODY = r"((?:(?!```).)*)"
BLOCK = re.compile(rf"```sh run\n{BODY}```\n(?:\n(?:[^`\n][^\n]*\n\n)?```text\n{BODY}```\n)?", re.DOTALL)
"""Commands, and the output below them; one line of prose may stand between."""
SHOWN_FOLDER = "/home/you/imagemill"
PORTS = ("9000", "8099")
"""Ports that pages use. A run takes free ones instead, so that two runs do not meet."""


def free_ports(count: int) -> list[str]:
    """Return ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(listener.getsockname()[1]) for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def run_page(page: Path, demo: Path, folder: Path, timeout: float = 900) -> list[str]:
    """Run the commands of a page and return the standard output of each block.

    Args:
        page: Markdown file.
        demo: Copied to `demo/` in `folder`.
        folder: Empty folder in which the commands run.
        timeout: Seconds for the whole page.

    Raises:
        AssertionError: When a command fails. The message holds the log.
    """
    shutil.copytree(demo, folder / "demo")
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    blocks = [match[1] for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]
    script = "set -e\n. .venv/bin/activate\n"
    script += "".join(f"{{\n{block}}} > .output-{number}\n" for number, block in enumerate(blocks))
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    for port, other in ports.items():
        script = script.replace(port, other)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")} | {"COLUMNS": "80"}
    with (folder / ".log").open("wb") as log:
        shell = subprocess.Popen(
            ["bash", "-c", script], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = shell.wait(timeout)
        finally:
            # Servers that a failed page leaves behind belong to the session of its shell.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert code == 0, (folder / ".log").read_text(errors="replace")[-4000:]
    outputs = [(folder / f".output-{number}").read_text() for number in range(len(blocks))]
    for shown, real in [*ports.items(), (SHOWN_FOLDER, str(folder))]:
        outputs = [output.replace(real, shown) for output in outputs]
    return outputs


def with_outputs(text: str, outputs: list[str]) -> str:
    """Return a page whose ```text blocks hold the output of the commands above them."""
    remaining = iter(outputs)

    def replace(match: re.Match[str]) -> str:
        output = next(remaining)
        if match[2] is None:
            return match[0]
        lines = [line.rstrip() for line in output.strip("\n").splitlines()]
        return "".join([match[0][: match.start(2) - match.start()], *(f"{line}\n" for line in lines), "```\n"])

    return BLOCK.sub(replace, text)


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(argument)
            path.write_text(with_outputs(path.read_text(), run_page(path, Path(sys.argv[1]), Path(temporary))))
