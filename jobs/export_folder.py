"""Check that a folder can take an export, and clean up after an unfinished one."""

import re

from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.exports import LATENTS, MANIFEST, UNFINISHED
from imagemill.pipeline.output.lease import FOLDER as LEASE
from imagemill.pipeline.storage import Store

TEMPORARY = r"(.*/)?\.[0-9a-f]{16}\.tmp"
EXPORT_FILE = re.compile(
    rf"{UNFINISHED}|{LEASE}/.*|checkpoints/[0-9a-f]{{16}}/.*|{TEMPORARY}"
    rf"|{LATENTS}(/shape=[0-9x]+)?(\.lance/.*|/part-\d+\.(latent\.npy|embedding\.npy|parquet|tar))"
)
"""Paths that an unfinished export may have written."""
UNFINISHED_TEXT = "An export into this folder is running or was interrupted. To start again, run the same command.\n"


def check_export_folder(dest: Store) -> None:
    """Check that a folder is empty or holds an unfinished export.

    Raises:
        ConfigError: when the folder holds a finished export or any other file.
    """
    if dest.exists(UNFINISHED):
        for entry in dest.entries():
            if not EXPORT_FILE.fullmatch(entry.path):
                raise ConfigError(f"{dest.uri(entry.path)}: is not part of an export. Move it or choose another folder.")
        return
    if dest.exists(MANIFEST):
        raise ConfigError(f"{dest.url}: holds a finished export. Choose another folder or delete the export.")
    if any(not entry.path.startswith(f"{LEASE}/") for entry in dest.entries()):
        raise ConfigError(f"{dest.url}: is not empty and holds no export. Choose another folder.")


def remove_unfinished_parts(dest: Store) -> None:
    """Delete the parts of an unfinished export."""
    for entry in [*dest.entries(LATENTS), *dest.entries(f"{LATENTS}.lance")]:
        dest.delete(entry.path)
