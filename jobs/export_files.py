"""Export latents as one file for each image, with the names and keys that trainers of diffusion models look for.

kohya's sd-scripts reads such files instead of encoding images (`library/strategy_base.py`): for SD and SDXL `NAME.npz` next
to `NAME.jpg`, with the arrays `latents`, `original_size` and `crop_ltrb`. For FLUX and SD3 the name of the file ends in the
size of the image and the model, and each key ends in the size of the latent.
"""

import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy

from imagemill.jobs.export_values import Scale
from imagemill.models.contract import LatentContract
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.exports import MANIFEST
from imagemill.pipeline.output.file_record import FileRecord
from imagemill.pipeline.output.latent_symbols import SIZE_COLUMNS, image_size, upright_size
from imagemill.pipeline.output.latent_values import latent_batches
from imagemill.pipeline.output.name_clashes import fold_name
from imagemill.pipeline.output.output_names import fallback_name, is_storable
from imagemill.pipeline.output.parts import iterate_parts
from imagemill.pipeline.output.snapshot import Snapshot
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.sources.folder import is_image_name
from imagemill.pipeline.storage import Store

log = logging.getLogger("imagemill.export")
COLUMNS = ["image_id", "rel_path", *SIZE_COLUMNS]
GROUP_FILES, GROUP_VALUES = 4096, 16_000_000
"""Files that are announced and written together, and the number of their values."""
Row = dict[str, Any]


def npz(arrays: dict[str, np.ndarray], about: dict[str, str]) -> bytes:
    """Return arrays as an NPZ file, which has no metadata."""
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    return data.getvalue()


def safetensors_(arrays: dict[str, np.ndarray], about: dict[str, str]) -> bytes:
    """Return arrays as a safetensors file with metadata."""
    data: bytes = safetensors.numpy.save(arrays, about)
    return data


FILE_FORMATS: dict[str, Callable[[dict[str, np.ndarray], dict[str, str]], bytes]] = {
    "npz": npz,
    "safetensors": safetensors_,
}


@dataclass(frozen=True)
class Trainer:
    """How sd-scripts stores the latents of a model."""

    model: str = ""
    suffix: str = ""
    """End of the name of a file. If it is not empty, names have the size of the image, and keys the size of the latent."""
    is_scaled: bool = False


TRAINERS = {
    (4, 0.13025): Trainer("SDXL"),
    (4, 0.18215): Trainer("SD"),
    (16, 0.3611): Trainer("FLUX", "_flux", is_scaled=True),
    (16, 1.5305): Trainer("SD3", "_sd3"),
}
"""The models that sd-scripts trains, by channels and scaling_factor of their latents."""


def find_trainer(latent: LatentContract | None) -> Trainer:
    """Return how sd-scripts stores the latents of a checkpoint; as for SD if it does not know them."""
    key = (latent.channels, latent.scaling_factor) if latent and latent.scaling_factor else None
    return TRAINERS.get(key, Trainer()) if key else Trainer()


@dataclass
class LatentFiles:
    """The files of one export, while they are written."""

    dest: Store
    file_format: str
    """A key of FILE_FORMATS."""
    latent: LatentContract | None
    """What the checkpoint says about float latents; None if its latents are symbols."""
    scale: Scale
    about: dict[str, Any]
    """What the values mean."""
    overwrite: bool = False
    """Replace files that no export wrote."""
    rows: int = 0

    def check(self) -> None:
        """Check that DEST holds no export of other values.

        Raises:
            ConfigError: when it does.
        """
        trainer, scaled = find_trainer(self.latent), bool(self.about.get("scaled"))
        if self.file_format == "npz" and trainer.model and scaled != trainer.is_scaled:
            advice = "Pass --scaled" if trainer.is_scaled else "Leave --scaled out"
            state = "scaled" if trainer.is_scaled else "unscaled"
            log.warning("sd-scripts expects %s latents of %s. %s if you train with it", state, trainer.model, advice)
        try:
            earlier = json.loads(self.dest.read(MANIFEST))
        except FileNotFoundError:
            return
        except ValueError:
            raise ConfigError(f"{self.dest.uri(MANIFEST)}: is not the record of an export. Choose another folder") from None
        for key, value in {**self.about, "format": self.file_format}.items():
            if key in ("format", "checkpoint_sha256", "scaled") and earlier.get(key) != value:
                raise ConfigError(
                    f"{self.dest.url}: holds an export with {key} {earlier.get(key)}, not {value}. Choose another folder"
                )

    def write(self, state: Snapshot, describe: Callable[[int, list[str]], dict[str, Any]]) -> dict[str, Any]:
        """Write a file for each row of a snapshot, and `export.json` first and last.

        Args:
            state: the snapshot.
            describe: returns the content of `export.json`, given the number of files, and a sentence about each damaged
                latent, which is left out.

        Returns:
            The content of `export.json`.

        Raises:
            ConfigError: when a file exists that no export wrote, or that was changed since.
        """
        name_of = self.choose_names(state)
        names = [name_of(row) for table in state.tables(COLUMNS) for row in table.to_pylist()]
        files = FileRecord(self.dest, self.overwrite)
        files.check([*names, MANIFEST])
        problems: list[str] = []
        # The threads end before the record closes, so that it has every file, also after an error.
        with files, ThreadPoolExecutor() as pool:
            # Written first, so that an export of other values does not add to an unfinished one.
            write_manifest(files, {**describe(0, []), "rows": None})
            for group in self.groups(state, problems):
                files.announce([name_of(row) for row, _ in group])
                list(pool.map(lambda pair: files.write(name_of(pair[0]), self.encode(*pair)), group))
                self.rows += len(group)
            content = describe(self.rows, problems)
            write_manifest(files, content)
        return content

    def groups(self, state: Snapshot, problems: list[str]) -> Iterator[list[tuple[Row, np.ndarray]]]:
        """Yield rows and their latents (C,h,w), as many as are written together."""
        group: list[tuple[Row, np.ndarray]] = []
        batches = latent_batches(state, COLUMNS, problems)
        for latents in with_progress("export", batches, len(state), lambda latents: len(latents.rows)):
            group += zip(latents.rows.to_pylist(), self.scale(latents.values), strict=True)
            if len(group) >= GROUP_FILES or sum(latent.size for _, latent in group) >= GROUP_VALUES:
                yield group
                group = []
        if group:
            yield group

    def encode(self, row: Row, latent: np.ndarray) -> bytes:
        """Return the file of a latent (C,h,w) float32."""
        height, width = upright_size(row)
        suffix = f"_{latent.shape[1]}x{latent.shape[2]}" if find_trainer(self.latent).suffix else ""
        arrays = {
            "latents": np.ascontiguousarray(latent),
            "original_size": np.array([width, height]),
            "crop_ltrb": np.array(fit_box(width, height, *image_size(row)[::-1])),
        }
        about = {"image_id": row["image_id"], "rel_path": row["rel_path"], "about": json.dumps(self.about)}
        return FILE_FORMATS[self.file_format]({f"{name}{suffix}": array for name, array in arrays.items()}, about)

    def choose_names(self, state: Snapshot) -> Callable[[Row], str]:
        """Return the function that gives the name of a row's file.

        Trainers replace the extension of an image. Images of the output that differ in the extension alone would get one
        name. Their files are `_renamed/IMAGE_ID.npz`, which no trainer takes for those of another image.
        """
        stem_count: Counter[str] = Counter()
        fold = fold_name if self.dest.folds_case() else str
        # All rows of the output count, so that the export of one run gives the same names.
        rel_paths: set[str] = set()
        for _, table in iterate_parts(state.output, state.parts, ["rel_path"], 1, state.schema, state.damaged):
            rel_paths.update(table["rel_path"].to_pylist())
        stem_count.update(fold(stem_of(rel_path)) for rel_path in rel_paths)
        suffix = find_trainer(self.latent).suffix

        def name_of(row: Row) -> str:
            stem, (height, width) = stem_of(row["rel_path"]), upright_size(row)
            name = f"{stem}{f'_{width:04d}x{height:04d}{suffix}' if suffix else ''}.{self.file_format}"
            is_safe = stem_count[fold(stem)] == 1 and is_storable(name)
            return name if is_safe else fallback_name(row["rel_path"], name)

        return name_of


def stem_of(rel_path: str) -> str:
    """Return the path of an image without its extension."""
    return rel_path.rpartition(".")[0] if is_image_name(rel_path) else rel_path


def fit_box(width: int, height: int, bucket_width: int, bucket_height: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of an image that is scaled to fit into a bucket, as sd-scripts computes crop_ltrb.

    Args:
        width: of the image before it was resized.
        height: of the image before it was resized.
        bucket_width: of the image that was encoded.
        bucket_height: of the image that was encoded.
    """
    scale = min(bucket_width / width, bucket_height / height)
    left, top = (bucket_width - width * scale) // 2, (bucket_height - height * scale) // 2
    return int(left), int(top), int(left + width * scale), int(top + height * scale)


def write_manifest(files: FileRecord, content: dict[str, Any]) -> None:
    """Write `export.json`."""
    files.announce([MANIFEST])
    files.write(MANIFEST, json.dumps(content, indent=2, ensure_ascii=False).encode())
