"""A training accepts the same inputs as a batch job: folders, shards and manifests."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.jobs.train import TrainConfig
from imagemill.jobs.training.crops import build_crop_dataset, read_centre_crops
from imagemill.jobs.training.images import list_training_images, open_inputs, prepare_images, read_images
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.storage import Store

CONFIG = {"name": "t", "task": "denoise", "architecture": "unet", "epochs": 1, "crop": 64, "crops_per_image": 2}


def tar_of(files: dict[str, bytes], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.usefixtures("ray_session")
def test_train_reads_shards_and_manifests(tmp_path, rclone_bucket, crops):
    files = {f"{number}.png": encode_rgb(crop, "PNG") for number, crop in enumerate(crops[:12])}
    bucket, local = Store(rclone_bucket), Store(str(tmp_path))
    for name, data in files.items():
        bucket.write(f"folder/{name}", data)
        local.write(f"pictures/{name}", data)
    bucket.write("shards/a.tar", tar_of(files | {"broken.png": b"broken"}, "w"))
    bucket.write("shards/b.tar.gz", tar_of(files, "w:gz"))
    pq.write_table(pa.table({"key": list(files), "image": list(files.values())}), tmp_path / "c.parquet")
    local.write("list.csv", ("path\n" + "".join(f"pictures/{name}\n" for name in files)).encode())
    places = [f"{rclone_bucket}/folder", f"{rclone_bucket}/shards", f"{tmp_path}/c.parquet", f"{tmp_path}/list.csv"]
    config = TrainConfig(**CONFIG, input=places, output=f"{rclone_bucket}/out")
    inputs, run = open_inputs(config), Store(f"{rclone_bucket}/out/run")
    images = prepare_images(config, inputs, run)
    assert (
        images.left_out()
        == "1 of 61 images left out: a.tar/broken.png: UnknownFormat: not an image in a known format: the file begins with "
        "b'broken'. Replace the file."
    )
    assert read_images(run).table.equals(images.table)
    for number, count in enumerate((12, 24, 12, 12)):
        own_images = images.table.filter((pa.compute.field("source") == number) & (pa.compute.field("use") != "left out"))
        assert len(own_images) == count
        expected = {crop.tobytes() for crop in read_centre_crops(inputs, own_images, 32)}
        assert expected == {crop.tobytes() for crop in crops[:12]}
    training = images.of("training")
    dataset_rows = build_crop_dataset(training, inputs, config, 0.25).take_all()
    assert len(dataset_rows) == 2 * len(training)
    assert {row["image"].shape for row in dataset_rows} == {(64, 64, 3)}


def test_centre_crops_name_vanished_images(clean, tmp_path):
    inputs = open_inputs(TrainConfig(**CONFIG, input=[str(clean)], output=str(tmp_path / "out")))
    images = list_training_images(inputs).slice(0, 2)
    for path in clean.iterdir():
        path.unlink()
    with pytest.raises(StorageError, match=r"none of 2 images can be read any more; the first are \d+\.png, \d+\.png"):
        read_centre_crops(inputs, images, 8)


def test_train_refuses_missing_sources(tmp_path):
    with pytest.raises(StorageError, match=r"gone\.tar: does not exist\. Check the path"):
        open_inputs(TrainConfig(**CONFIG, input=[f"{tmp_path}/gone.tar"], output=str(tmp_path / "out")))
