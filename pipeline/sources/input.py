"""The input of a run: a folder or prefix of image files and shards, one shard, or a manifest."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import chain

from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.lookahead import HasResult, Ready, map_ahead
from imagemill.pipeline.sources import manifest
from imagemill.pipeline.sources.folder import attach_masks, classify_file
from imagemill.pipeline.sources.selection import Selection
from imagemill.pipeline.sources.shard_formats import shard_format, shard_suffixes
from imagemill.pipeline.sources.shard_index import index_shard
from imagemill.pipeline.sources.source import CONTAINER_CLASSES, ListedEntry, ListedImage, SourceConfig
from imagemill.pipeline.sources.system_files import EXCLUDED, is_excluded, is_excluded_folder
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from imagemill.pipeline.store_listing import Entry

SHARD_THREADS = 4
"""Shards that are indexed at the same time."""


@dataclass(frozen=True)
class Input:
    """The location of a run's images, and how to read it."""

    store: Store
    """The folder or prefix, or the one that contains `file`."""
    file: str | None
    """Name of the only shard or manifest of the input; None if the input is the whole folder or prefix."""
    config: SourceConfig

    @property
    def url(self) -> str:
        """The location as the user wrote it, made absolute."""
        return self.store.uri(self.file) if self.file else self.store.url


def open_input(url: str, storage: StorageConfig, config: SourceConfig) -> Input:
    """Check that an input exists, and find out whether it is a folder, a shard or a manifest.

    Raises:
        ConfigError: when the input is a file that is neither a shard nor a manifest.
        StorageError: when the input does not exist.
    """
    store = Store(url, storage)
    if not store.exists():
        check = "Check the path" if store.local else "Check the bucket, the prefix and AWS_ENDPOINT_URL"
        raise StorageError(f"input {store.url}: does not exist. {check}")
    if not is_file(store):
        return Input(store, None, config)
    folder, _, name = store.url.rpartition("/")
    if not is_input_file(name):
        if not store.local and store.is_prefix(""):
            return Input(store, None, config)
        suffixes = ", ".join(sorted({*manifest.MANIFEST_FORMATS, *shard_suffixes()}))
        raise ConfigError(f"input {store.url} is a file; a folder, a shard or a manifest is expected ({suffixes})")
    return Input(Store(folder or "/", storage), name, config)


def is_input_file(path: str) -> bool:
    """Return whether a path has the suffix of a shard or a manifest."""
    return shard_format(path) is not None or manifest.is_manifest(path)


def is_file(store: Store) -> bool:
    """Return whether a location is a file.

    fsspec's `isfile` is not used: it returns False if the store fails.

    Raises:
        OSError: as `Store.entry`.
    """
    if not store.local and "/" not in store.root:
        return False
    try:
        store.entry("")
    except IsADirectoryError:
        return False
    return True


def list_images(
    source: Input, output: Store | None = None, masks: bool = False, store_indexes: bool = False
) -> Iterator[ListedEntry]:
    """List every image of an input, in the order of the names, and the kind of each other file or member.

    Args:
        source: the input.
        output: the OUTPUT. The index of an unchanged shard is read from there, instead of the shard.
        masks: whether NAME.mask.png is the mask of the image NAME.
        store_indexes: whether to write indexes that OUTPUT does not have yet.

    Raises:
        StorageError: when the store cannot be listed.
        ConfigError: when a column that the config names does not exist, or a manifest is invalid.
    """
    return select_images(list_unfiltered(source, output, masks, store_indexes), source.config.selection)


def list_unfiltered(source: Input, output: Store | None, masks: bool, store_indexes: bool) -> Iterator[ListedEntry]:
    """List an input like `list_images`, with images that the config does not select."""
    may_be_manifest = source.file is not None and manifest.is_manifest(source.file)
    if source.file and may_be_manifest and (source.config.uri or not shard_format(source.file)):
        return iter(manifest.list_manifest(source.store, source.file, source.config))
    entries = list_files(source, output, store_indexes)
    if source.file and may_be_manifest:
        # A Parquet file can be either: it is a manifest if it has no column of images.
        first = next(entries, None)
        if first is None:
            return iter(())
        if isinstance(first, str):
            return iter(manifest.list_manifest(source.store, source.file, source.config))
        entries = chain([first], entries)
    return attach_masks(entries) if masks else entries


def select_images(entries: Iterator[ListedEntry], selection: Selection) -> Iterator[ListedEntry]:
    """Replace the images that are not selected by the kind EXCLUDED.

    The reject of a folder or shard stays if images in it may be selected.
    """
    if not selection:
        return entries

    def is_read(entry: ListedEntry) -> bool:
        return isinstance(entry, str) or is_selected(selection, entry.rel_path, entry.error_class)

    return (entry if is_read(entry) else EXCLUDED for entry in entries)


def is_selected(selection: Selection, name: str, error_class: str | None) -> bool:
    """Return whether an image is selected, or for the reject of a folder or shard, whether images in it may be.

    Args:
        selection: the patterns.
        name: rel_path of the image, folder or shard.
        error_class: why it is a reject; None for an image that can be read.
    """
    is_container = error_class in CONTAINER_CLASSES or shard_format(name) is not None
    return selection.may_enter(name) if is_container else selection.has_image(name)


def find_images(source: Input, names: set[str], output: Store) -> list[ListedImage]:
    """Find images of an input by their rel_path. Images that no longer exist are left out.

    In a folder or prefix, only the files that may contain the images are looked up.

    Args:
        source: the input.
        names: rel_path of each image.
        output: the OUTPUT, whose indexes of shards are read first.

    Raises:
        StorageError, ConfigError, OSError: when the input cannot be reached.
    """
    if source.file:
        return select_by_name(list_images(source, output), names)

    @cache
    def find_entry(path: str) -> Entry | None:
        try:
            return source.store.entry(path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    files = {next(filter(None, map(find_entry, candidate_files(name))), None) for name in names}
    entries: list[ListedEntry] = []
    for file in filter(None, files):
        if form := shard_format(file.path):
            entries += index_shard(form, source.store, source.config, file, output, store_index=False)
        else:
            entries.append(classify_file(file))
    return list({image.rel_path: image for image in select_by_name(entries, names)}.values())


def select_by_name(entries: Iterable[ListedEntry], names: set[str]) -> list[ListedImage]:
    """Return the images whose rel_path is one of the names."""
    return [entry for entry in entries if isinstance(entry, ListedImage) and entry.rel_path in names]


def candidate_files(name: str) -> list[str]:
    """Return the paths that may contain an image: each parent with the suffix of a shard, then the path itself.

    A parent with such a suffix may be a folder.
    """
    folders = name.split("/")
    return [*filter(shard_format, ("/".join(folders[:n]) for n in range(1, len(folders)))), name]


def list_files(source: Input, output: Store | None, store_indexes: bool) -> Iterator[ListedEntry]:
    """List image files in the order of the store, and the images of shards, a few of which are indexed ahead."""
    selection = source.config.selection

    def is_skipped(folder: str) -> bool:
        return is_excluded_folder(folder) or not selection.may_enter(folder)

    files = iter([source.store.entry(source.file)]) if source.file else source.store.entries(skips=is_skipped)
    with ThreadPoolExecutor(SHARD_THREADS) as pool:

        def submit(file: Entry) -> HasResult[list[ListedEntry]]:
            form = shard_format(file.path)
            if form is None:
                return Ready([classify_file(file)])
            # Exclusion by name does not apply to a shard that the user named as INPUT.
            if not source.file and (is_excluded(file.path) or not selection.may_enter(file.path)):
                return Ready([EXCLUDED])
            return pool.submit(index_shard, form, source.store, source.config, file, output, store_indexes)

        yield from chain.from_iterable(map_ahead(submit, files, SHARD_THREADS))
