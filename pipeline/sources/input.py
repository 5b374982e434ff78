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
from imagemill.pipeline.sources.shard_formats import shard_format, shard_suffixes
from imagemill.pipeline.sources.shard_index import index_shard
from imagemill.pipeline.sources.source import ListedEntry, ListedImage, SourceConfig
from imagemill.pipeline.sources.system_files import is_excluded, is_excluded_folder
from imagemill.pipeline.storage import StorageConfig, Store
from imagemill.pipeline.store_listing import Entry

SHARD_THREADS = 4


@dataclass(frozen=True)
class Input:
    """Where a run's images are."""

    store: Store
    file: str | None
    """The shard or manifest that is all of the input; None for a folder or prefix."""
    config: SourceConfig

    @property
    def url(self) -> str:
        return self.store.uri(self.file) if self.file else self.store.url


def open_input(url: str, storage: StorageConfig, config: SourceConfig) -> Input:
    """Raises: ConfigError for a file that is neither a shard nor a manifest; StorageError when nothing is there."""
    store = Store(url, storage)
    if not store.exists():
        raise StorageError(f"input {store.url} does not exist")
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
    """Whether a place is a file. Raises: what Store.entry does; fsspec's isfile says no to a store that fails."""
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
    """Every image of an input, in the order of its names, and the kind of each file or member that is none.

    Args:
        output: OUTPUT, whose index of a shard stands in for the shard while it is the same.
        store_indexes: write the indexes that OUTPUT lacks.
        masks: NAME.mask.png is the mask of the image NAME.

    Raises: StorageError when the store cannot be listed; ConfigError when columns that the config names are not there.
    """
    may_be_manifest = source.file is not None and manifest.is_manifest(source.file)
    if source.file and may_be_manifest and (source.config.uri or not shard_format(source.file)):
        return iter(manifest.list_manifest(source.store, source.file, source.config))
    listed = list_files(source, output, store_indexes)
    if source.file and may_be_manifest:
        # A Parquet file can be either: it is a manifest if it has no column of images.
        first = next(listed, None)
        if first is None:
            return iter(())
        if isinstance(first, str):
            return iter(manifest.list_manifest(source.store, source.file, source.config))
        listed = chain([first], listed)
    return attach_masks(listed) if masks else listed


def find_images(source: Input, names: set[str], output: Store) -> list[ListedImage]:
    """Images of an input by their rel_path, those that are still there, without listing the rest where that can be.

    Args: output: OUTPUT, whose index of a shard is looked at first.

    Raises: StorageError, ConfigError, OSError when the input cannot be reached.
    """
    if source.file:
        return select_by_name(list_images(source, output), names)
    found: list[ListedEntry] = []

    @cache
    def entry_at(path: str) -> Entry | None:
        try:
            return source.store.entry(path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    entries = (next(filter(None, map(entry_at, candidate_files(name))), None) for name in names)
    for entry in set(filter(None, entries)):
        form = shard_format(entry.path)
        found += (
            index_shard(form, source.store, source.config, entry, output, store_indexes=False)
            if form
            else [classify_file(entry)]
        )
    return list({image.rel_path: image for image in select_by_name(found, names)}.values())


def select_by_name(found: Iterable[ListedEntry], names: set[str]) -> list[ListedImage]:
    return [image for image in found if isinstance(image, ListedImage) and image.rel_path in names]


def candidate_files(name: str) -> list[str]:
    """What may hold an image of this name: shards, which folders may be called like, and a file of its own."""
    folders = name.split("/")
    return [*filter(shard_format, ("/".join(folders[:n]) for n in range(1, len(folders)))), name]


def list_files(source: Input, output: Store | None, store_indexes: bool) -> Iterator[ListedEntry]:
    """Image files as they are listed, and the images of shards, a few of which are read at a time."""
    entries = iter([source.store.entry(source.file)]) if source.file else source.store.entries(may_skip=is_excluded_folder)
    with ThreadPoolExecutor(SHARD_THREADS) as pool:

        def submit(entry: Entry) -> HasResult[list[ListedEntry]]:
            # A single file that is the whole input was chosen by the user, so it is never excluded.
            form = shard_format(entry.path) if source.file or not is_excluded(entry.path) else None
            if form is None:
                return Ready([classify_file(entry)])
            return pool.submit(index_shard, form, source.store, source.config, entry, output, store_indexes)

        yield from chain.from_iterable(map_ahead(submit, entries, SHARD_THREADS))
