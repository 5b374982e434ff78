"""Where the images of rows came from: the place that a source lay below, by its source_uri and its rel_path."""

import os
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

QUERY = r"^(https?://[^?#]*)[?#].*$"
"""The query of a web address holds signatures, which are new each day, and does not say where the image lies."""


def source_places(uris: pa.Array, names: pa.Array) -> pa.Array:
    """The place of each source: what stands before its name; all of its URI where that does not end in its name.

    Args:
        uris, names: the columns source_uri and rel_path, of equal length.
    """
    # Of many images together they are longer than the offsets of plain strings can say.
    uris, names = (column.cast(pa.large_string()) for column in (uris, names))
    uris = pc.replace_substring_regex(uris, pattern=QUERY, replacement=r"\1")
    ends = pc.subtract(pc.binary_length(uris), pc.add(pc.binary_length(names), 1))
    found = uris
    for end in pc.unique(ends).to_pylist():
        if end is None or end < 0:
            continue
        here = pc.equal(ends, end)
        heads = pc.binary_slice(uris.filter(here).cast(pa.large_binary()), 0, end).cast(pa.large_string(), safe=False)
        found = pc.replace_with_mask(found, here, heads)
    whole = pc.equal(pc.binary_join_element_wise(found, names, pa.scalar("/", pa.large_string())), uris)
    return pc.if_else(whole, found, uris)


def canonical_place(place: str) -> str:
    """A place under the one name that all of its names share: links followed, no scheme of a local path, no last slash."""
    if "://" in place and not place.startswith("file://"):
        return place.rstrip("/")
    folder, name = os.path.split(os.path.abspath(place.removeprefix("file://") or "/"))
    full = os.path.join(resolve_folder(folder), name)
    return os.path.realpath(full) if os.path.islink(full) else full


def is_same_place(one: str, other: str) -> bool:
    """Whether two places are one."""
    return canonical_place(one) == canonical_place(other)


@lru_cache(10_000)
def resolve_folder(folder: str) -> str:
    """A folder with its links followed; those above many files are followed once."""
    return os.path.realpath(folder)


def find_moved(before: pa.ChunkedArray, now: pa.Array, names: pa.Array) -> pa.Array:
    """For each image the place that it was in before, where it is in another one now; null where it is in the same.

    Args:
        before, now: source_uri of rows, and of the same images as an input lists them; rows without one have not moved.
        names: rel_path of the images.
    """
    before = before.cast(pa.large_string()).combine_chunks()
    differ = pc.fill_null(pc.not_equal(before, now), False)
    if not pc.any(differ).as_py():
        return pa.nulls(len(names), pa.string())
    names = names.filter(differ)
    old = source_places(before.filter(differ), names).dictionary_encode()
    new = source_places(now.filter(differ), names).dictionary_encode()
    pairs, which = np.unique(np.stack([old.indices, new.indices]), axis=1, return_inverse=True)
    places = [(old.dictionary[int(a)].as_py(), new.dictionary[int(b)].as_py()) for a, b in pairs.T]
    left = pa.array([None if canonical_place(a) == canonical_place(b) else a for a, b in places], pa.string())
    return pc.replace_with_mask(pa.nulls(len(differ), pa.string()), differ, left.take(pa.array(which.ravel())))


def number_places(places: pa.Array, numbers: dict[str, int]) -> np.ndarray:
    """The number of each place, (N,) int32, by `numbers`, which new places get one of; -1 for null."""
    encoded = places.dictionary_encode()
    known = [numbers.setdefault(place, len(numbers)) for place in encoded.dictionary.to_pylist()]
    return np.array([*known, -1], np.int32)[encoded.indices.fill_null(len(known)).to_numpy()]
