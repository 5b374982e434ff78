"""Float latents of autoencoders of other libraries: equality with the library, storage, damage, and all readers."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from imagemill.jobs.decode import decode_output
from imagemill.models.errors import CheckpointError
from imagemill.models.latents import encode_values
from imagemill.models.objectives.compress import round_values
from imagemill.models.precision import Precision
from imagemill.models.routes.diffusers_route import build_module, decode_module, encode_module
from imagemill.models.routes.float_coder import FloatCoder
from imagemill.models.tasks.task import SampleError
from imagemill.pipeline import read_latents
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import VerificationError
from imagemill.pipeline.output.compact import merge_parts
from imagemill.pipeline.output.parts import list_parts
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.resolve import resolve
from imagemill.pipeline.schema import FITTING, image_id
from imagemill.pipeline.storage import Store
from tests.support.float_coders import CONFIGS, CONTRACTS, compress_here, library_latent, write_float_coder
from tests.support.folders import rows

SIZES = {"a.png": (64, 48), "b.png": (64, 48), "wide.png": (96, 32), "odd.png": (61, 45)}
"""Width and height. The first two and the last one have one padded size for a multiple of 4."""
MULTIPLES = {name: contract.size_multiple for name, contract in CONTRACTS.items()}


def write_images(folder: Path, crops: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Write images of SIZES; return their pixels (H,W,3) uint8."""
    folder.mkdir()
    images = {}
    for crop, (name, (width, height)) in zip(crops, SIZES.items(), strict=False):
        images[name] = np.asarray(Image.fromarray(crop).resize((width, height)))
        Image.fromarray(images[name]).save(folder / name)
    return images


def values_of(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(row["latent_values"], np.float32).reshape(row["latent_shape"])


def to_tensor(rgb: np.ndarray, multiple: int = 1) -> torch.Tensor:
    """Return an image as the library takes it, with its edge repeated to a multiple."""
    h, w = rgb.shape[:2]
    padded = np.pad(rgb, ((0, -h % multiple), (0, -w % multiple), (0, 0)), mode="edge")
    return torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_latents_equal_those_of_the_library(tmp_path, crops, name, batch_size):
    """Batches and single images give what a direct call of the library gives."""
    module = write_float_coder(tmp_path / "checkpoint", name)
    images = write_images(tmp_path / "in", crops)
    output = compress_here(tmp_path, pool={"batch_size": batch_size})
    made = {row["rel_path"]: row for row in rows(tmp_path / "out")}
    assert set(made) == set(images)
    for path, rgb in images.items():
        expected = library_latent(module, to_tensor(rgb, MULTIPLES[name]))[0].numpy()
        np.testing.assert_allclose(values_of(made[path]), expected, atol=1e-5, rtol=0)
        assert made[path]["latent"] is None
        assert made[path]["step"] is None
        assert made[path]["latent_dtype"] == "float32"
    assert verify(output).problems == []
    decode_output(output, Store(str(tmp_path / "decoded")))
    for path, rgb in images.items():
        with Image.open(tmp_path / "decoded" / path) as image, torch.inference_mode():
            latent = torch.from_numpy(values_of(made[path]))[None]
            expected = (module.decode(latent).sample[0] / 2 + 0.5).clamp(0, 1) * 255
            h, w = rgb.shape[:2]
            assert image.size == (w, h)
            difference = np.asarray(image, np.float32) - expected.permute(1, 2, 0).numpy()[:h, :w]
        assert np.abs(difference).max() <= 1


def test_reconstruction_is_what_decode_writes_later(tmp_path, crops):
    """Values rounded to float16 are decoded as they are stored; PSNR and size are those of the file and the row."""
    write_float_coder(tmp_path / "checkpoint", "AutoencoderTiny")
    images = write_images(tmp_path / "in", crops)
    output = compress_here(tmp_path, reconstruct=True, params={"latent_dtype": "float16"}, pool={"batch_size": 3})
    decode_output(output, Store(str(tmp_path / "decoded")))
    for row in rows(tmp_path / "out"):
        written = tmp_path / "out" / row["output_uri"]
        assert written.read_bytes() == (tmp_path / "decoded" / row["rel_path"]).read_bytes()
        with Image.open(written) as image:
            error = np.asarray(image, np.float64) - images[row["rel_path"]]
        assert row["psnr_db"] == pytest.approx(10 * np.log10(255**2 / np.square(error).mean()), abs=1e-3)
        values = values_of(row)
        assert row["latent_dtype"] == "float16"
        assert np.array_equal(values, values.astype(np.float16).astype(np.float32))
        # Less than 17 bits a value: the lower bytes of values that were rounded to float16 are zero.
        size = SIZES[row["rel_path"]]
        assert 0 < row["bits_per_pixel"] * size[0] * size[1] < 8 * 40 + 17 * values.size


def test_samples_depend_on_the_name_alone(tmp_path, crops):
    """A sample is mode + deviation · noise, and the noise has the seed of the image, not of its batch or its pixels."""
    module = write_float_coder(tmp_path / "checkpoint")
    images = write_images(tmp_path / "in", crops)
    made = []
    for batch_size in (1, 4):
        keys = {"output": str(tmp_path / f"out{batch_size}"), "pool": {"batch_size": batch_size}}
        compress_here(tmp_path, params={"latents": "sample"}, **keys)
        made.append({row["rel_path"]: values_of(row) for row in rows(tmp_path / f"out{batch_size}")})
    for name, rgb in images.items():
        np.testing.assert_allclose(made[0][name], made[1][name], atol=1e-5)
        with torch.inference_mode():
            latents = module.encode(to_tensor(rgb, 4) * 2 - 1).latent_dist
        generator = torch.Generator().manual_seed(int(image_id(name)[:16], 16))
        noise = torch.randn(latents.mean.shape[1:], generator=generator)
        np.testing.assert_allclose(made[0][name], (latents.mean + latents.std * noise)[0].numpy(), atol=1e-5)
    assert np.abs(made[0]["a.png"] - made[0]["b.png"]).max() > 0.5


def test_tiles_do_not_change_latents(tmp_path, crops, monkeypatch):
    """Tiles that are exact give the latents of the whole image, and the same noise; other networks get the whole image."""
    monkeypatch.setattr("imagemill.models.latents.tile_side", lambda *size: 32)
    module = write_float_coder(tmp_path / "checkpoint", "AutoencoderTiny", halo=64)
    (tmp_path / "in").mkdir()
    rgb = np.asarray(Image.fromarray(crops[0]).resize((301, 170)))
    Image.fromarray(rgb).save(tmp_path / "in" / "large.png")
    output = compress_here(tmp_path)
    [row] = rows(tmp_path / "out")
    np.testing.assert_allclose(values_of(row), library_latent(module, to_tensor(rgb, 4))[0].numpy(), atol=1e-5)
    decode_output(output, Store(str(tmp_path / "decoded")))
    with Image.open(tmp_path / "decoded" / "large.png") as image, torch.inference_mode():
        expected = module.decode(torch.from_numpy(values_of(row))[None]).sample[0].permute(1, 2, 0)[:170, :301]
        assert np.abs(np.asarray(image, np.float32) - (expected.numpy() / 2 + 0.5).clip(0, 1) * 255).max() <= 1


def test_parts_open_elsewhere_and_say_how_to_scale(tmp_path, crops):
    write_float_coder(tmp_path / "checkpoint")
    write_images(tmp_path / "in", crops)
    output = compress_here(tmp_path)
    made = {row["rel_path"]: values_of(row).ravel() for row in rows(tmp_path / "out")}
    [path] = [Path(output.full(part)) for part in list_parts(output, "results")]
    sql = f"SELECT rel_path, latent_values, latent_shape FROM '{path}'"
    for name, values, shape in duckdb.sql(sql).fetchall():
        assert np.array_equal(np.asarray(values, np.float32), made[name])
        assert np.prod(shape) == len(values)
    about = json.loads(pq.read_schema(path).metadata[b"imagemill"])["latents"]
    [(sha256, latent)] = about.items()
    assert sha256 == rows(tmp_path / "out")[0]["checkpoint_sha256"]
    assert (latent["scaling_factor"], latent["shift_factor"], latent["factor"]) == (0.18215, 0.1, 4)
    metadata = dict(duckdb.sql(f"SELECT key, value FROM parquet_kv_metadata('{path}')").fetchall())
    assert json.loads(metadata[b"imagemill"])["latents"] == about


def test_flipped_bit_of_a_value_is_found(tmp_path, crops):
    write_float_coder(tmp_path / "checkpoint", "AutoencoderTiny")
    write_images(tmp_path / "in", crops)
    output = compress_here(tmp_path)
    [part] = list_parts(output, "results")
    table = pq.read_table(output.full(part))
    column = table["latent_values"].combine_chunks()
    damaged = column.flatten().to_numpy().copy()
    first = table["rel_path"][0].as_py()
    damaged.view(np.uint32)[17] ^= 1
    index = table.schema.get_field_index("latent_values")
    changed = pa.ListArray.from_arrays(column.offsets, pa.array(damaged))
    output.write(part, parquet_bytes(table.set_column(index, "latent_values", changed), 3))
    assert verify(output).problems == [f"{part} row 0: latent does not match its latent_crc32"]
    with pytest.raises(VerificationError, match=rf"{first}: latent does not match its latent_crc32"):
        decode_output(output, Store(str(tmp_path / "decoded")))
    assert len(list((tmp_path / "decoded").glob("*.png"))) == 3
    with pytest.raises(VerificationError, match=f"{first}: latent does not match"):
        list(read_latents(output.url, columns=["rel_path"]).batches())


def test_latents_too_large_for_lists_are_read(tmp_path, crops, monkeypatch):
    write_float_coder(tmp_path / "checkpoint", "AutoencoderTiny")
    write_images(tmp_path / "in", crops)
    compress_here(tmp_path, output=str(tmp_path / "lists"))
    monkeypatch.setattr("imagemill.pipeline.schema.LIST_VALUES", 1)
    output = compress_here(tmp_path)
    assert all(row["latent_values"] is row["latent"] is None for row in rows(tmp_path / "out"))
    assert verify(output).problems == []
    for place in ("lists", "out"):
        decode_output(Store(str(tmp_path / place)), Store(str(tmp_path / f"decoded-{place}")))
    for name in SIZES:
        assert (tmp_path / "decoded-lists" / name).read_bytes() == (tmp_path / "decoded-out" / name).read_bytes()
    values = [
        {
            row["rel_path"]: latent
            for table, batch in read_latents(str(tmp_path / place), columns=["rel_path"]).batches()
            for row, latent in zip(table.to_pylist(), batch, strict=True)
        }
        for place in ("lists", "out")
    ]
    assert all(np.array_equal(values[0][name], values[1][name]) for name in SIZES)


def test_integer_and_float_latents_share_an_output(tmp_path, crops):
    """Older parts have no columns for floats; rows of both kinds are merged into one part, and each reader copes."""
    write_images(tmp_path / "in", crops)
    output = compress_here(tmp_path, checkpoint="conv-mnist")
    for part in list_parts(output, "results"):
        table = pq.read_table(output.full(part))
        later = ["latent_values", "latent_dtype", *(name for name, _ in FITTING)]
        output.write(part, parquet_bytes(table.drop_columns(later), 3))
    write_float_coder(tmp_path / "checkpoint")
    compress_here(tmp_path, limit=2)
    parts = list_parts(output, "results")
    assert merge_parts(output, "results", parts, 3) == len(parts) == 2
    [merged] = list_parts(output, "results")
    assert "latents" in json.loads(pq.read_schema(output.full(merged)).metadata[b"imagemill"])
    assert verify(output).problems == []
    assert verify(output).latents == 6
    assert decode_output(output, Store(str(tmp_path / "decoded"))) == 4
    batches = read_latents(output.url, columns=["rel_path", "model_id"]).batches()
    channels = {(row["model_id"], values.shape[1]) for table, values in batches for row in table.to_pylist()}
    assert channels == {("conv-mnist", 4), ("AutoencoderKL", 4)}


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("AutoencoderKL", {"step": 26, "coding": "plain"}, "params.step, params.coding: .* are floats.*Remove them"),
        ("AutoencoderTiny", {"latents": "sample"}, "params.latents='sample': .*no distribution"),
        ("conv-mnist", {"latents": "mode"}, "params.latents: .* are integers.*Remove it"),
        ("conv-mnist", {"latent_dtype": "float16"}, "params.latent_dtype: .* are integers"),
    ],
)
def test_parameters_without_a_meaning_are_refused(tmp_path, name, params, message):
    """A default is not refused, but a parameter that was given and does nothing is."""
    if name in CONFIGS:
        write_float_coder(tmp_path / "checkpoint", name)
    (tmp_path / "in").mkdir()
    checkpoint = str(tmp_path / "checkpoint") if name in CONFIGS else name
    keys = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "checkpoint": checkpoint}
    with pytest.raises(CheckpointError, match=message) as e:
        resolve(RunConfig(task="compress", params=params, **keys))
    assert "\n" not in str(e.value)


def test_latents_that_are_no_numbers_are_rejected():
    values = np.array([[[[1.0, 70_000.0]]]], np.float32)
    assert round_values(values, "float32") is not None
    with pytest.raises(SampleError, match=r"above the range of float16\. Set --latent-dtype float32"):
        round_values(values, "float16")
    with pytest.raises(SampleError, match="not finite"):
        round_values(values * np.float32("nan"), "float32")


def test_versions_of_integer_latents_are_unchanged(tmp_path):
    """New parameters must not make a run compress images again that older versions compressed."""
    (tmp_path / "in").mkdir()
    config = RunConfig(task="compress", input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    values = {"step": 26.0, "coding": "plain", "task": "compress", "reconstruct": False}
    assert resolve(config).parameters == values


def test_versions_of_float_latents_have_no_quantiser(tmp_path):
    write_float_coder(tmp_path / "checkpoint", "AutoencoderKL")
    (tmp_path / "in").mkdir()
    keys = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "checkpoint": str(tmp_path / "checkpoint")}
    config = RunConfig(task="compress", params={"latents": "sample"}, **keys)
    assert resolve(config).parameters == {"latents": "sample", "task": "compress", "reconstruct": False}


def test_images_smaller_than_the_network_takes(tmp_path, crops):
    """They are padded to the smallest side, and decoded to their own size."""
    module = write_float_coder(tmp_path / "checkpoint", "AutoencoderTiny", min_side=24)
    (tmp_path / "in").mkdir()
    Image.fromarray(crops[0][:5, :30]).save(tmp_path / "in" / "thin.png")
    output = compress_here(tmp_path)
    [row] = rows(tmp_path / "out")
    padded = np.pad(crops[0][:5, :30], ((0, 19), (0, 2), (0, 0)), mode="edge")
    np.testing.assert_allclose(values_of(row), library_latent(module, to_tensor(padded))[0].numpy(), atol=1e-5)
    decode_output(output, Store(str(tmp_path / "decoded")))
    with Image.open(tmp_path / "decoded" / "thin.png") as image:
        assert image.size == (30, 5)


def test_number_format_is_part_of_the_version(tmp_path, crops):
    """Latents are float32 unless another format is given: they must not depend on the hardware."""
    write_float_coder(tmp_path / "checkpoint", dtypes=("float32", "bfloat16"))
    write_images(tmp_path / "in", crops)
    compress_here(tmp_path)
    compress_here(tmp_path, pool={"dtype": "bfloat16"})
    made = [{r["rel_path"]: values_of(r) for r in rows(tmp_path / "out") if r["fence"] == fence} for fence in (1, 2)]
    assert len(made[0]) == len(made[1]) == len(SIZES)
    difference = np.abs(made[0]["a.png"] - made[1]["a.png"]).max()
    assert 1e-4 < difference < 0.2


def test_images_too_large_for_memory_are_rejected(crops):
    """The reject says what helps. On a CPU, the latents of an image do not depend on its batch at all."""
    contract = CONTRACTS["AutoencoderKL"].model_copy(update={"bytes_per_pixel": 1000})
    model = FloatCoder(build_module("AutoencoderKL", CONFIGS["AutoencoderKL"]), contract, encode_module, decode_module)
    images = [np.ascontiguousarray(crop[:64, :64]) for crop in crops[:3]]
    precision = Precision(memory=1000 * 64 * 64)
    together = encode_values(model, images, None, precision)
    assert np.array_equal(together, np.concatenate([encode_values(model, [image], None, precision) for image in images]))
    with pytest.raises(SampleError, match=r"128×96 pixels need 0\.0123 GB.*--resize max:\d+\).*--workers") as e:
        encode_values(model, crops[:1], None, precision)
    assert e.value.error_class == "TooLargeForMemory"
    assert "--tile" not in str(e.value)
