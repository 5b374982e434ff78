import pytest

from imagemill.jobs.convert_efficientnet import convert
from imagemill.jobs.training.config import TrainConfig
from imagemill.models.errors import CheckpointError


def test_convert_refuses_other_files(tmp_path) -> None:
    config = TrainConfig(name="a", task="colorize", architecture="palette", epochs=1, crop=64)
    with pytest.raises(CheckpointError, match="sha256 begins with"):
        convert(b"pickled code", config, str(tmp_path / "init"))
    assert not (tmp_path / "init").exists()
