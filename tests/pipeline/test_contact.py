"""Ray that does not answer any more: work and cleaning up come to an end all the same."""

import threading

import pytest

from imagemill.pipeline.cluster import contact as module
from imagemill.pipeline.cluster.connection import connected
from imagemill.pipeline.cluster.contact import Contact, ContactLost, clean_up, contact, wait_for_answer, while_answering


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Contact:
    """A Ray that is silent at once."""
    fresh = Contact()
    monkeypatch.setattr(module, "contact", fresh)
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.05)
    return fresh


def without_end() -> None:
    threading.Event().wait()


def test_contact_ends_work_that_ray_does_not_answer(silent: Contact) -> None:
    """Ray's own calls have no end without its control store."""
    with pytest.raises(ContactLost, match="has not answered"):
        while_answering(without_end)
    assert silent.lost
    asked = []
    clean_up(lambda: asked.append(1))
    assert not asked


def test_contact_ends_one_question_without_answer(silent: Contact) -> None:
    """A question in the main thread could not be interrupted by a signal either."""
    with pytest.raises(ContactLost):
        wait_for_answer(without_end)
    assert silent.lost


def test_contact_gives_what_work_gives_and_raises(silent: Contact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 60.0)
    assert while_answering(lambda: 7) == wait_for_answer(lambda: 7) == 7
    for do in (while_answering, wait_for_answer):
        with pytest.raises(KeyError):
            do({}.popitem)
    clean_up({}.popitem)
    assert not silent.lost


def test_contact_is_lost_by_cleaning_up_without_end(silent: Contact) -> None:
    """The end of Ray itself may hang; the process ends without it."""
    clean_up(without_end, 0.05)
    assert silent.lost


@pytest.mark.usefixtures("ray_session")
def test_contact_counts_from_work_not_from_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may list its input for hours before it needs Ray."""
    monkeypatch.setattr(contact, "_last", contact._last - 10_000)
    with connected(None):
        assert while_answering(lambda: 7) == 7
    monkeypatch.setattr(contact, "lost", True)
    with pytest.raises(ContactLost), connected(None):
        pass
