"""What is to do: inputs minus committed outputs."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.images.errors import DAMAGED_IMAGE
from imagemill.pipeline.output.committed_rows import read_newest_rows
from imagemill.pipeline.output.parts import list_parts
from imagemill.pipeline.output.rejects import read_rejects
from imagemill.pipeline.progress import LOG_SECONDS
from imagemill.pipeline.schema import REFERENCE, image_id, version_of
from imagemill.pipeline.sources.source import UNREADABLE_SHARD, ListedEntry, ListedImage
from imagemill.pipeline.sources.web import redact_secrets
from imagemill.pipeline.storage import Store

log = logging.getLogger("imagemill.run")
LISTED_AT_A_TIME = 20_000


@dataclass
class Plan:
    """What a run would do."""

    todo: pa.Table
    """References (schema.REFERENCE) to the images to do, in the order of the listing."""
    found: int
    ignored: Counter[str]
    """Files that are no images by their names, of each kind."""
    done: int
    rejects_waiting: int
    """Rejects of the current version that only `--retry-failed` processes again."""
    redone: pa.Table
    """The image_id of those to do that have a row already."""
    parts: set[str]
    """The parts that were there when it was made."""
    doubled: pa.Table
    """The image_id of those with several rows of their version, which a run that was killed left."""
    strange: bool
    """Whether there are rows or rejects, and none of them is of an image that was found."""
    fencing_token: int
    """The highest of the runs that made rows of what it found, or were to do some of it again."""
    rows: int
    """Rows that were there, of all images."""
    moved: Counter[str] = field(default_factory=Counter)
    """How many images have a newest row that was made from a source in another place than theirs is now, by that place."""
    moved_example: str | None = None
    """The name of one of them."""
    absent: pa.Table | None = None
    """Rejects of images that were not found (image_id, fence, run_id); None where a shard could not be looked into."""
    input_warning: str | None = None
    """Why INPUT may be the wrong place."""
    new_input: str | None = None
    """Why a run refuses INPUT, unless it is told that it may be new."""

    @property
    def bytes_todo(self) -> int:
        # Images behind a URL have no size before they are fetched.
        return int(pc.sum(pc.max_element_wise(self.todo["size"], 0)).as_py() or 0)


def make_plan(
    listed: Iterable[ListedEntry],
    source: Store,
    output: Store,
    checkpoint_sha256: str,
    parameters: dict[str, Any],
    *,
    retry_failed: bool | str = False,
    accept_damaged: bool = False,
    limit: int | None = None,
) -> Plan:
    """Subtract what is committed from what is listed, and keep the rest.

    Args:
        listed: what `sources.listing` gives.
        source: what the paths of `listed` are relative to.
        parameters: what changes pixels or codes, beside the checkpoint.
        retry_failed: process only the rejects of the same version again; with an error class, only the rejects of this
            class. Without it, rejects with a transient cause are processed again next to new images.
        accept_damaged: do the images again whose newest reject says that they are damaged.
    """
    inputs, ignored = references(listed, source, checkpoint_sha256, parameters)
    ids, versions = (inputs[name].combine_chunks() for name in ("image_id", "version"))
    results, rejects = list_parts(output, "results"), list_parts(output, "rejects")
    newest = read_newest_rows(output, results, inputs)
    accepted = (DAMAGED_IMAGE,) if accept_damaged else ()
    retried_class = retry_failed if isinstance(retry_failed, str) else None
    history = read_rejects(output, rejects, ids, versions, accepted, retried_class)
    attempts, is_retried = history.attempts, history.is_retried
    if retried_class and not is_retried.any():
        log.warning(
            "retry_failed=%s: no image of the input has a newest reject of this class. `imagemill failures %s` lists "
            "the classes",
            retried_class,
            output.url,
        )
    done = newest.is_same_version & (newest.fencing_token >= 0)
    waiting = history.waits & ~done
    kept = np.flatnonzero(~done & (is_retried if retry_failed else ~waiting))[:limit]
    todo = inputs.take(kept)
    for name, values in (("attempts", attempts[kept].astype(np.int32)), ("known", newest.has_row[kept])):
        column = REFERENCE.get_field_index(name)
        todo = todo.set_column(column, REFERENCE.field(column), pa.array(values))
    redone = todo.select(["image_id"]).filter(todo["known"])
    doubled = inputs.select(["image_id"]).filter(pa.array(newest.row_counts > 1))
    waiting_rejects = 0 if retry_failed else int(waiting.sum())
    parts, fencing_token = {*results, *rejects}, int(newest.max_fencing_token.max(initial=0))
    unread = pc.any(pc.starts_with(inputs["problem"], UNREADABLE_SHARD)).as_py()
    absent = None if unread else history.absent
    strange = bool(parts) and not newest.has_row.any() and not attempts.any()
    moved = np.flatnonzero(newest.moved_from >= 0)
    images = np.bincount(newest.moved_from[moved], minlength=len(newest.places))
    places = Counter({place: int(images[number]) for place, number in newest.places.items() if images[number]})
    return Plan(
        todo,
        len(inputs),
        ignored,
        int(done.sum()),
        waiting_rejects,
        redone,
        parts,
        doubled,
        strange,
        fencing_token,
        newest.total_rows,
        places,
        inputs["rel_path"][int(moved[0])].as_py() if len(moved) else None,
        absent,
    )


def references(
    listed: Iterable[ListedEntry], source: Store, checkpoint_sha256: str, parameters: dict[str, Any]
) -> tuple[pa.Table, Counter[str]]:
    """References to all that is listed (schema.REFERENCE, attempts 0, not known); counts of what is no image, by kind."""
    version = version_of(checkpoint_sha256, parameters)
    chunks, ignored = [REFERENCE.empty_table()], Counter[str]()
    named: set[bytes] = set()
    again: Counter[str] = Counter()
    last_log = time.monotonic()
    iterator: Iterator[ListedEntry] = iter(listed)
    while some := list(islice(iterator, LISTED_AT_A_TIME)):
        images = [image for image in some if isinstance(image, ListedImage)]
        ignored.update(kind for kind in some if isinstance(kind, str))
        for place, image in enumerate(images):
            digest = bytes.fromhex(image_id(image.rel_path))
            if digest in named:
                # Two members of one name, two rows of one key: the first is done, the others are told.
                problem = f"DuplicateName: another image is called {redact_secrets(image.rel_path)} too: rename one of them"
                again[image.rel_path] += 1
                at = again[image.rel_path] if image.offset is None else image.offset
                other = f"{image.rel_path}#{redact_secrets(image.path)}@{at}"
                images[place] = replace(image, rel_path=other, problem=problem)
                digest = bytes.fromhex(image_id(other))
            named.add(digest)
        columns = {
            "image_id": [image_id(image.rel_path) for image in images],
            "version": [version(image.etag) for image in images],
            "source_uri": [uri_of(image, source) for image in images],
            "source_etag": [image.etag for image in images],
            "attempts": [0] * len(images),
            "known": [False] * len(images),
        }
        columns |= {name: [getattr(image, name) for image in images] for name in REFERENCE.names if name not in columns}
        chunks.append(pa.table([pa.array(columns[field.name], field.type) for field in REFERENCE], schema=REFERENCE))
        if time.monotonic() - last_log > LOG_SECONDS:
            last_log = time.monotonic()
            log.info("listed %d images and %d other files so far", len(named), ignored.total())
    return pa.concat_tables(chunks), ignored


def uri_of(image: ListedImage, source: Store) -> str:
    """How a row names the source of an image; a member of a shard by the shard and its own name."""
    if image.base is None:
        return source.uri(image.path if image.offset is None else image.rel_path)
    return f"{image.base.rstrip('/')}/{image.path}" if image.base else image.path


def blocks(todo: pa.Table, rows: int) -> list[pa.Table]:
    """The references in slices of at most `rows`."""
    return [todo.slice(start, rows).combine_chunks() for start in range(0, len(todo), rows)]
