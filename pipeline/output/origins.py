"""The place of each source: the location that its rel_path is relative to, from the columns source_uri and rel_path."""

import os
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

QUERY = r"^(https?://[^?#]*)[?#].*$"
"""URL with a query. Queries are ignored, because they contain signatures that change every day."""


def source_places(uris: pa.Array, names: pa.Array) -> pa.Array:
    """Return the place of each source: the URI without the name, or the whole URI if it does not end in the name.

    Args:
        uris: source_uri of the sources, (N,).
        names: rel_path of the sources, (N,).
    """
    # The text of millions of images can exceed the 32-bit offsets of plain strings.
    uris, names = (column.cast(pa.large_string()) for column in (uris, names))
    uris = pc.replace_substring_regex(uris, pattern=QUERY, replacement=r"\1")
    ends = pc.subtract(pc.binary_length(uris), pc.add(pc.binary_length(names), 1))
    places = uris
    for end in pc.unique(ends).to_pylist():
        if end is None or end < 0:
            continue
        has_length = pc.equal(ends, end)
        heads = pc.binary_slice(uris.filter(has_length).cast(pa.large_binary()), 0, end).cast(pa.large_string(), safe=False)
        places = pc.replace_with_mask(places, has_length, heads)
    ends_in_name = pc.equal(pc.binary_join_element_wise(places, names, pa.scalar("/", pa.large_string())), uris)
    return pc.if_else(ends_in_name, places, uris)


def canonical_place(place: str) -> str:
    """Return the canonical form of a place: links resolved, no scheme for a local path, no slash at the end."""
    if "://" in place and not place.startswith("file://"):
        return place.rstrip("/")
    folder, name = os.path.split(os.path.abspath(place.removeprefix("file://") or "/"))
    full = os.path.join(resolve_folder(folder), name)
    return os.path.realpath(full) if os.path.islink(full) else full


def is_same_place(one: str, other: str) -> bool:
    """Return whether two texts name the same place."""
    return canonical_place(one) == canonical_place(other)


@lru_cache(10_000)
def resolve_folder(folder: str) -> str:
    """Return a folder with its links resolved. The cache resolves the folder of many files once."""
    return os.path.realpath(folder)


def find_moved(before: pa.ChunkedArray, now: pa.Array, names: pa.Array) -> pa.Array:
    """Return the previous place of each image that is now in another place; null for the other images.

    Args:
        before: source_uri of the rows, (N,). A row without one counts as not moved.
        now: source_uri of the same images in the listing, (N,).
        names: rel_path of the images, (N,).
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
    previous = pa.array([None if canonical_place(a) == canonical_place(b) else a for a, b in places], pa.string())
    return pc.replace_with_mask(pa.nulls(len(differ), pa.string()), differ, previous.take(pa.array(which.ravel())))


def number_places(places: pa.Array, numbers: dict[str, int]) -> np.ndarray:
    """Return the number of each place, (N,) int32; -1 for null. New places are added to `numbers`."""
    encoded = places.dictionary_encode()
    indexes = [numbers.setdefault(place, len(numbers)) for place in encoded.dictionary.to_pylist()]
    return np.array([*indexes, -1], np.int32)[encoded.indices.fill_null(len(indexes)).to_numpy()]
