"""Files that operating systems and programs leave next to photos: thumbnails, trash, resource forks. They are never read."""

import re
from fnmatch import translate
from functools import lru_cache

EXCLUDED = "excluded"
"""The kind that such files are counted as."""

FOLDERS = (
    # macOS
    *("__MACOSX", ".AppleDouble", ".AppleDB", ".AppleDesktop", ".DocumentRevisions-V100", ".fseventsd", ".Spotlight-V100"),
    *(".TemporaryItems", "Network Trash Folder", "Temporary Items"),
    # trash cans
    *("$RECYCLE.BIN", ".Trash", ".Trash-*", ".Trashes", ".dtrash", ".recycle", "#recycle", "@Recycle"),
    # NAS: Synology, QNAP, and snapshots of other systems
    *("@eaDir", "@tmp", "#snapshot", ".@__thumb", ".@upload_cache", "@Recently-Snapshot", "@Transcode"),
    *(".snapshot", ".snapshots", "~snapshot", ".zfs"),
    # thumbnails and copies made by desktops, phones and programs
    *(".thumbnails", ".thumb", ".thumbs", ".sh_thumbnails", ".xvpics", ".ipynb_checkpoints"),
    # synchronisation: deleted, old and half-written files
    *(".dropbox.cache", ".stversions", ".sync", ".tmp.drivedownload", ".tmp.driveupload"),
    # version control
    *(".git", ".hg", ".svn"),
    # Windows and file systems
    *("System Volume Information", "lost+found"),
)
"""Names of excluded folders, at any depth. `*` matches any text; case is ignored."""

FILES = (
    *("._*", ".DS_Store", ".apdisk", ".localized", "Icon\r"),
    *("Thumbs.db", "Thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
    *(".directory", ".nomedia", ".picasa.ini", "Picasa.ini", "*@SynoEAStream", "*@SynoResource"),
    # Android: an image in the trash, and one that is still being written
    *(".trashed-*", ".pending-*"),
)
"""Names of excluded files, in any folder."""


def compile_patterns(names: tuple[str, ...]) -> re.Pattern[str]:
    """Return one pattern that matches any of the names."""
    return re.compile("|".join(map(translate, names)), re.IGNORECASE)


FOLDER_PATTERN, FILE_PATTERN = compile_patterns(FOLDERS), compile_patterns(FILES)


def is_excluded(path: str) -> bool:
    """Return whether a file was left by a system or program, by its path within the input or shard."""
    folder, _, name = path.rpartition("/")
    return is_excluded_folder(folder) or FILE_PATTERN.match(name) is not None


@lru_cache(maxsize=4096)
def is_excluded_folder(path: str) -> bool:
    """Return whether a folder or one of its parents is excluded, by its path within the input or shard."""
    return any(map(FOLDER_PATTERN.match, path.split("/")))
