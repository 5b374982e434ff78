"""Equal input locations, and images that come from another input than their rows."""

from pathlib import Path

import pyarrow as pa
import pytest

from imagemill.pipeline.output.origins import find_moved, source_places
from imagemill.pipeline.plan import Plan, make_plan
from imagemill.pipeline.sources.input import list_images, open_input
from imagemill.pipeline.sources.source import SourceConfig
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from tests.support.planned_rows import PARAMS, SHA, etags, key, put


def plan_input(url: str, output: Store, **source: object) -> Plan:
    opened_input = open_input(url, StorageConfig(), SourceConfig(**source))
    return make_plan(list_images(opened_input), opened_input.store, output, SHA, PARAMS)


def commit(url: str, output: Store, fence: int = 1) -> None:
    """Commit one row for each image of a folder, like a run over it."""
    store = Store(url)
    rows = [key(p, e) | {"source_uri": store.uri(p), "fence": fence} for p, e in etags(store).items()]
    put(output, "results", rows)


def cards(tmp_path: Path) -> tuple[Store, Store, Store]:
    """Return two camera cards, which number their files from one, and an empty output."""
    first_card, second_card = Store(f"{tmp_path}/one/DCIM"), Store(f"{tmp_path}/other/DCIM")
    for name in ("100/0001.jpg", "100/0002.jpg"):
        first_card.write(name, b"one")
        second_card.write(name, b"the other")
    second_card.write("100/0003.jpg", b"the other")
    return first_card, second_card, Store(f"{tmp_path}/out")


def test_origins_count_images_of_another_input(tmp_path):
    first_card, second_card, output = cards(tmp_path)
    commit(first_card.url, output)
    plan = plan_input(second_card.url, output)
    assert dict(plan.moved) == {first_card.url: 2}
    assert plan.moved_example == "100/0001.jpg"
    assert not plan_input(first_card.url, output).moved


def test_origin_is_read_from_the_newest_row(tmp_path):
    """After an allowed move, the earlier location counts as a different input."""
    first_card, second_card, output = cards(tmp_path)
    commit(first_card.url, output, fence=1)
    commit(second_card.url, output, fence=2)
    assert not plan_input(second_card.url, output).moved
    assert dict(plan_input(first_card.url, output).moved) == {second_card.url: 2}


@pytest.mark.parametrize("spelling", ["{}/", "file://{}", "file://{}/", "{}/../DCIM", "link", "folder link", "relative"])
def test_origin_ignores_spellings_of_an_input(tmp_path, monkeypatch, spelling):
    first_card, _, output = cards(tmp_path)
    commit(first_card.url, output)
    (tmp_path / "link").symlink_to(first_card.url)
    (tmp_path / "linked").symlink_to(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    names = {"link": f"{tmp_path}/link", "folder link": f"{tmp_path}/linked/DCIM", "relative": "one/DCIM"}
    plan = plan_input(names.get(spelling, spelling.format(first_card.url)), output)
    assert (plan.done, plan.moved.total()) == (2, 0)
    # The reverse order gives the same result.
    commit(names.get(spelling, spelling.format(first_card.url)), output, fence=2)
    assert not plan_input(first_card.url, output).moved


def test_origin_ignores_spellings_of_a_bucket(tmp_path, moto_bucket):
    source, output = Store(f"{moto_bucket}/in"), Store(f"{moto_bucket}/out")
    for name in ("a.jpg", "x/b.jpg"):
        source.write(name, name.encode())
    commit(source.url, output)
    assert plan_input(f"{moto_bucket}/in/", output).done == 2
    assert not plan_input(f"{moto_bucket}/in/", output).moved
    for name in ("a.jpg", "x/b.jpg"):
        Store(f"{moto_bucket}/renamed").write(name, name.encode())
    plan = plan_input(f"{moto_bucket}/renamed", output)
    assert (plan.done, dict(plan.moved)) == (2, {f"{moto_bucket}/in": 2})


def test_origin_of_changed_manifest_keys_has_moved(tmp_path):
    first_card, _, output = cards(tmp_path)
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,id\none/DCIM/100/0001.jpg,first\none/DCIM/100/0002.jpg,second\n")
    plan = plan_input(str(manifest), output, key="id")
    rows = plan.todo.select(["image_id", "version", "source_uri", "rel_path"]).to_pylist()
    put(output, "results", [row | {"fence": 1} for row in rows])
    assert not plan_input(str(manifest), output, key="id").moved
    manifest.write_text("path,id\none/DCIM/100/0001.jpg,first\nother/DCIM/100/0001.jpg,second\n")
    assert dict(plan_input(str(manifest), output, key="id").moved) == {first_card.uri("100/0002.jpg"): 1}


def test_origin_ignores_url_signatures():
    """The signature of a signed URL changes every day."""
    names = pa.array(["a", "h/b.jpg", "c"])
    old_urls = pa.chunked_array([["https://h/a.jpg?sig=1", "https://h/b.jpg?sig=1", "https://h/c.jpg"]])
    new_urls = pa.array(["https://h/a.jpg?sig=2", "https://h/b.jpg?x=2", "https://mirror/c.jpg"])
    assert find_moved(old_urls, new_urls, names).to_pylist() == [None, None, "https://h/c.jpg"]


def test_origin_is_the_prefix_of_the_name():
    uris = ["/a/é/x/y.jpg", "s3://b/k/t.tar/m.png", "s3://b/k/y.png", "/y.jpg", None, "https://h/p?q#f"]
    names = ["x/y.jpg", "t.tar/m.png", "other.png", "y.jpg", "y.jpg", "p"]
    expected = ["/a/é", "s3://b/k", "s3://b/k/y.png", "", None, "https://h"]
    assert source_places(pa.array(uris), pa.array(names)).to_pylist() == expected
