"""The plan of a run: images of the input minus committed rows of the output."""

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.images.errors import DAMAGED_IMAGE
from imagemill.pipeline.output.committed_rows import read_newest_rows
from imagemill.pipeline.output.parts import list_parts
from imagemill.pipeline.output.rejects import ABSENT_SCHEMA, read_rejects
from imagemill.pipeline.progress import LOG_SECONDS
from imagemill.pipeline.schema import REFERENCE, image_id, version_of
from imagemill.pipeline.sources.addresses import redact_secrets
from imagemill.pipeline.sources.input import is_selected
from imagemill.pipeline.sources.selection import Selection
from imagemill.pipeline.sources.source import CONTAINER_CLASSES, UNREADABLE_FOLDER, ListedEntry, ListedImage, split_problem
from imagemill.pipeline.storage import Store

log = logging.getLogger("imagemill.run")
ENTRIES_PER_CHUNK = 20_000


@dataclass
class Plan:
    """What a run would process, and what its output already holds."""

    todo: pa.Table
    """References (schema.REFERENCE) to the images to process, in the order of the listing."""
    found: int
    """Images of the input."""
    ignored: Counter[str]
    """Kind of file → number of files that are not images by their names."""
    done: int
    """Images whose newest row has the current version."""
    rejects_waiting: int
    """Rejects of the current version that only `--retry-failed` processes again."""
    redone: pa.Table
    """image_id of the images in `todo` that have a row already."""
    parts: set[str]
    """Paths of the parts that the output held when the plan was made."""
    doubled: pa.Table
    """image_id of the images with several rows of their version, which a killed run left."""
    is_unrelated: bool
    """Whether the output holds rows or rejects, but not of any image of the input."""
    fencing_token: int
    """The highest fencing token of the runs that wrote, or were to replace, rows of the images in the input."""
    rows: int
    """Rows of the output, of all images."""
    moved: Counter[str] = field(default_factory=Counter)
    """Former place → number of images whose newest row was made from a source in that place, not from the present source."""
    moved_example: str | None = None
    """Name of an image in `moved`."""
    gone_rejects: pa.Table = field(default_factory=ABSENT_SCHEMA.empty_table)
    """Rejects of images that the input lacks (rejects.ABSENT_SCHEMA)."""
    hidden_rejects: pa.Table = field(default_factory=ABSENT_SCHEMA.empty_table)
    """Rejects of images that were not listed and may still exist (rejects.ABSENT_SCHEMA), because of `source.include`,
    `source.exclude`, or a folder or shard that could not be read."""
    unreadable_folders: dict[str, str] = field(default_factory=dict)
    """Folder of the input that cannot be listed → why."""
    input_warning: str | None = None
    """Why the input may be the wrong place; run.json calls it `doubt`."""
    new_input: str | None = None
    """Why a run refuses this input unless allow_new_input is set."""

    @property
    def bytes_todo(self) -> int:
        """Bytes of the source files in `todo`, except files behind URLs, whose size is not known before they are fetched."""
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
    limit_order: str = "random",
    selection: Selection | None = None,
    prefix: str | None = None,
) -> Plan:
    """Return the plan of a run: the listed images without those that have a committed row.

    Args:
        listed: images, and the kinds of other files (sources.input.list_images).
        source: store that the paths of `listed` are relative to.
        output: store that holds the committed rows.
        checkpoint_sha256: digest of the checkpoint, part of the version of a row.
        parameters: all other values that change pixels or codes, part of the version of a row.
        retry_failed: True processes only the rejects of the same version again; an error class, only the rejects of this
            class. False processes new and changed images, and rejects with a transient cause.
        accept_damaged: process the images again whose newest reject is of the class DamagedImage.
        limit: process at most this many images.
        limit_order: which images `limit` takes: "random", or "first" for the first ones of the listing.
        selection: how `listed` was filtered.
        prefix: as in build_references.

    Raises:
        StorageError: when the output cannot be read.
    """
    inputs, ignored = build_references(listed, source, checkpoint_sha256, parameters, prefix)
    ids, versions = (inputs[name].combine_chunks() for name in ("image_id", "version"))
    results, rejects = list_parts(output, "results"), list_parts(output, "rejects")
    newest = read_newest_rows(output, results, inputs, prefix)
    accepted_classes = (DAMAGED_IMAGE,) if accept_damaged else ()
    retried_class = retry_failed if isinstance(retry_failed, str) else None
    history = read_rejects(output, rejects, ids, versions, accepted_classes, retried_class)
    attempts, is_retried = history.attempts, history.is_retried
    if retried_class and not is_retried.any():
        log.warning(
            "retry_failed=%s: no image of the input has a newest reject of this class. `imagemill failures %s` lists "
            "the classes",
            retried_class,
            output.url,
        )
    is_done = newest.is_same_version & (newest.fencing_token >= 0)
    is_waiting = history.waits & ~is_done
    selected = np.flatnonzero(~is_done & (is_retried if retry_failed else ~is_waiting))
    selected = selected[:limit] if limit_order == "first" else sample(selected, ids, limit)
    todo = inputs.take(selected)
    for name, values in (("attempts", attempts[selected].astype(np.int32)), ("known", newest.has_row[selected])):
        column = REFERENCE.get_field_index(name)
        todo = todo.set_column(column, REFERENCE.field(column), pa.array(values))
    redone = todo.select(["image_id"]).filter(todo["known"])
    doubled = inputs.select(["image_id"]).filter(pa.array(newest.row_counts > 1))
    waiting_rejects = 0 if retry_failed else int(is_waiting.sum())
    parts, fencing_token = {*results, *rejects}, int(newest.max_fencing_token.max(initial=0))
    is_hidden = find_hidden(history.absent, inputs, selection, prefix)
    is_unrelated = bool(parts) and not newest.has_row.any() and not attempts.any()
    moved_rows = np.flatnonzero(newest.moved_from >= 0)
    image_counts = np.bincount(newest.moved_from[moved_rows], minlength=len(newest.places))
    places = Counter({place: int(image_counts[number]) for place, number in newest.places.items() if image_counts[number]})
    return Plan(
        todo,
        len(inputs),
        ignored,
        int(is_done.sum()),
        waiting_rejects,
        redone,
        parts,
        doubled,
        is_unrelated,
        fencing_token,
        newest.total_rows,
        places,
        inputs["rel_path"][int(moved_rows[0])].as_py() if len(moved_rows) else None,
        history.absent.filter(pc.invert(is_hidden)),
        history.absent.filter(is_hidden),
        dict(find_unreadable(inputs, {UNREADABLE_FOLDER})),
    )


def sample(selected: np.ndarray, ids: pa.Array, count: int | None) -> np.ndarray:
    """Return `count` random elements of `selected`, in the order of the listing, in which shards are read fast.

    An image id is a hash of a name, so the images with the smallest ids are a random sample: the same one in each call, and
    part of any larger sample.

    Args:
        selected: indexes of images in the listing, ascending.
        ids: image_id of all listed images.
        count: size of the sample; None for all of `selected`.
    """
    if count is None or count >= len(selected):
        return selected
    smallest = pc.select_k_unstable(ids.take(pa.array(selected)), count, sort_keys=[("", "ascending")])
    result: np.ndarray = np.sort(selected[smallest.to_numpy()])
    return result


def find_unreadable(inputs: pa.Table, error_classes: Collection[str]) -> list[tuple[str, str]]:
    """Return the path and the problem of each folder or shard of a listing that could not be read."""
    problems = inputs.filter(pc.is_valid(inputs["problem"])).select(["path", "problem"]).to_pylist()
    pairs = ((row["path"], split_problem(row["problem"])) for row in problems)
    return [(path, problem) for path, (error_class, problem) in pairs if error_class in error_classes]


def find_hidden(absent: pa.Table, inputs: pa.Table, selection: Selection | None, prefix: str | None) -> pa.Array:
    """Return, per reject, whether its image, folder or shard may exist although it was not listed, (N,) bool.

    Args:
        absent: rejects of what was not listed (rejects.ABSENT_SCHEMA).
        inputs: the listing (schema.REFERENCE).
        selection: how the listing was filtered.
        prefix: as in build_references.
    """
    unread = {path for path, _ in find_unreadable(inputs, CONTAINER_CLASSES)}

    def is_hidden(name: str, error_class: str | None) -> bool:
        name = name_in_input(name, prefix)
        if selection and not is_selected(selection, name, error_class):
            return True
        return not unread.isdisjoint(accumulate(name.split("/"), "{}/{}".format))

    if not (selection or unread):
        return pa.array(np.zeros(len(absent), bool))
    return pa.array(map(is_hidden, *(absent[name].to_pylist() for name in ("rel_path", "error_class"))), pa.bool_())


class UniqueNames:
    """Give each image of an input a name that no earlier image of the input has.

    Two shard members of the same name would become two rows of one image. The first member is processed. The later ones are
    rejected, each under a unique name.
    """

    def __init__(self, prefix: str | None) -> None:
        self.prefix = prefix
        self.ids: set[bytes] = set()
        """image_id of all images, 16 bytes each."""
        self.repeats: Counter[str] = Counter()

    def add(self, image: ListedImage) -> tuple[bytes, ListedImage]:
        """Return the 16 bytes of an image_id, and the image, which is a reject with another name if its name is taken."""
        digest = self.digest(image.rel_path)
        if digest in self.ids:
            problem = f"DuplicateName: another image has the name {redact_secrets(image.rel_path)}. Rename one of them"
            self.repeats[image.rel_path] += 1
            number = self.repeats[image.rel_path] if image.offset is None else image.offset
            unique_name = f"{image.rel_path}#{redact_secrets(image.path)}@{number}"
            image = replace(image, rel_path=unique_name, problem=problem)
            digest = self.digest(unique_name)
        self.ids.add(digest)
        return digest, image

    def digest(self, name: str) -> bytes:
        """Return the image_id of a name within the input as 16 bytes."""
        return bytes.fromhex(image_id(name_in_output(name, self.prefix)))


def build_references(
    listed: Iterable[ListedEntry],
    source: Store,
    checkpoint_sha256: str,
    parameters: dict[str, Any],
    prefix: str | None = None,
) -> tuple[pa.Table, Counter[str]]:
    """Return references to all listed images (schema.REFERENCE), and the number of other files of each kind.

    The columns `attempts` and `known` are 0 and false: make_plan fills them in.

    Args:
        listed: images, and the kinds of other files.
        source: store that the paths of `listed` are relative to.
        checkpoint_sha256: digest of the checkpoint.
        parameters: all other values that change pixels or codes.
        prefix: name in front of the names of all images; None to leave the names as they are.
    """
    version = version_of(checkpoint_sha256, parameters)
    chunks, ignored = [REFERENCE.empty_table()], Counter[str]()
    names = UniqueNames(prefix)
    last_log = time.monotonic()
    iterator: Iterator[ListedEntry] = iter(listed)
    while entries := list(islice(iterator, ENTRIES_PER_CHUNK)):
        named = [names.add(entry) for entry in entries if isinstance(entry, ListedImage)]
        images = [image for _, image in named]
        ignored.update(kind for kind in entries if isinstance(kind, str))
        columns = {
            "image_id": [digest.hex() for digest, _ in named],
            "version": [version(image.etag) for image in images],
            "rel_path": [name_in_output(image.rel_path, prefix) for image in images],
            "source_uri": [source_uri(image, source) for image in images],
            "source_etag": [image.etag for image in images],
            "attempts": [0] * len(images),
            "known": [False] * len(images),
        }
        columns |= {name: [getattr(image, name) for image in images] for name in REFERENCE.names if name not in columns}
        chunks.append(pa.table([pa.array(columns[field.name], field.type) for field in REFERENCE], schema=REFERENCE))
        if time.monotonic() - last_log > LOG_SECONDS:
            last_log = time.monotonic()
            log.info("listed %d images and %d other files so far", len(names.ids), ignored.total())
    return pa.concat_tables(chunks), ignored


def name_in_output(name: str, prefix: str | None) -> str:
    """Return the name of an image in OUTPUT: its name within the input, behind the prefix of the input."""
    return f"{prefix}/{name}" if prefix else name


def name_in_input(name: str, prefix: str | None) -> str:
    """Return the name of an image within the input: the inverse of `name_in_output`."""
    return name.removeprefix(f"{prefix}/") if prefix else name


def source_uri(image: ListedImage, source: Store) -> str:
    """Return the URI of an image in its row; for a member of a shard, the path of the shard and the name of the member."""
    if image.base is None:
        return source.uri(image.path if image.offset is None else image.rel_path)
    return f"{image.base.rstrip('/')}/{image.path}" if image.base else image.path


def split_blocks(todo: pa.Table, rows: int) -> list[pa.Table]:
    """Return references in blocks of at most `rows` rows."""
    return [todo.slice(start, rows).combine_chunks() for start in range(0, len(todo), rows)]
