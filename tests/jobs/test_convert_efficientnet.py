import pytest

from imagemill.jobs.convert_efficientnet import convert
from imagemill.models.errors import CheckpointError


def test_convert_refuses_other_files(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="sha256 begins with"):
        convert(b"pickled code", str(tmp_path / "init"))
    assert not (tmp_path / "init").exists()
