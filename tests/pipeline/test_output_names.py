from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagemill.pipeline.output.output_names import MAX_COMPONENT_BYTES, MAX_PATH_BYTES, output_name
from imagemill.pipeline.schema import image_id
from imagemill.pipeline.sources.folder import IMAGE_EXTENSIONS

EXTENSION = st.sampled_from([*IMAGE_EXTENSIONS, ".JPG", ".Png"])
# Few letters and many dots make name collisions likely.
CLOSE = st.lists(st.sampled_from(["a", ".", "/", ".png", ".jpg", "_", "_renamed/", "é", "ä" * 100]), max_size=8).map("".join)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PATH = st.tuples(CLOSE | ANY, EXTENSION).map("".join)
NEW = st.sampled_from([None, ".png"])


def is_safe(name: str) -> bool:
    parts = name.split("/")
    return "\0" not in name and all(p not in ("", ".", "..") and len(p.encode()) <= MAX_COMPONENT_BYTES for p in parts)


def is_path_on_disk(path: str) -> bool:
    return is_safe(path)


@given(PATH, NEW)
@example("../../etc/cron.d/a.jpg", None)
@example("/etc/passwd.png", None)
@example("a//b.jpg", ".png")
@example("a/../b.jpg", None)
@example("./a.jpg", None)
@example("a\0.jpg", None)
@example("x" * 251 + ".jpg", ".png")
@example("ä" * 126 + ".jpg", None)
@example("d" * 256 + "/a.jpg", None)
@example("d/" * 500 + "a.jpg", None)
@example("d/" * 448 + "a.jpg", ".png")
def test_output_name_stays_in_its_folder(path: str, new_extension: str | None) -> None:
    name = output_name(path, new_extension)
    assert is_safe(name)
    assert len(name.encode()) <= MAX_PATH_BYTES


@given(st.dictionaries(PATH, NEW, min_size=2, max_size=12))
@settings(max_examples=300)
@example({"a.jpg": ".png", "a.jpg.png": None})
@example({"a.jpg": ".png", "a.jpg.png": ".png", "a.jpg.png.png": None})
@example({"a.jpg": ".png", "a.jpg.png": None, "a.jpg.png.png": None, "a.jpg.png.png.png": None})
@example({"_renamed/a.jpg": None, "../a.jpg": None, "/a.jpg": None})
@example({"a.gif.png": ".png", "a.gif": ".png"})
@example({"123": ".png", "123.png": None})
@example({"123": ".png", "123.image.png": None, "123.image.png.png": None})
@example({"123": ".png", "123.image.png/a.jpg": None})
def test_output_names_are_unique(changes: dict[str, str | None]) -> None:
    names = {output_name(path, new) for path, new in changes.items()}
    assert len(names) == len(changes)


@given(PATH.filter(is_path_on_disk), NEW)
def test_output_name_of_a_renamed_source_is_reserved(path: str, new_extension: str | None) -> None:
    victim = "../victim.jpg"
    output_of_victim = output_name(victim, None)
    assert output_name(output_of_victim, new_extension) != output_name(victim, None)
    assert output_name(path, new_extension) != output_name(victim, None)


@given(st.dictionaries(PATH, NEW, min_size=2, max_size=8))
@settings(max_examples=300)
@example({"a.gif": ".png", "a.gif.png/b.jpg": None})
@example({"a.jpg": None, "a.jpg/b.jpg": None})
@example({"a.JPG": None, "a.JPG/b.jpg": ".png"})
def test_output_name_is_never_a_folder_of_another(changes: dict[str, str | None]) -> None:
    names = [output_name(path, new) for path, new in changes.items()]
    assert not [(a, b) for a in names for b in names if b.startswith(f"{a}/")]


def test_output_name_keeps_an_unchanged_format() -> None:
    for path in (
        "a.jpg",
        "x/y/z.PNG",
        ".hidden/.a.webp",
        "_under/_a.tif",
        "日本語/é ü.jpeg",
        "a b#c%20.bmp",
        "v1.2/a.b.jpg",
    ):
        assert output_name(path, None) == path


def test_output_name_appends_a_changed_format() -> None:
    assert output_name("a.jpg", ".png") == "a.jpg.png"
    assert output_name("x/.a.GIF", ".png") == "x/.a.GIF.png"
    assert output_name("日本/é.webp", ".png") == "日本/é.webp.png"


def test_output_name_falls_back_to_the_image_id() -> None:
    path = "ü" * 130 + ".jpg"
    assert output_name(path, None) == f"_renamed/{image_id(path)}.jpg"
    assert output_name(path, ".png") == f"_renamed/{image_id(path)}.png"
