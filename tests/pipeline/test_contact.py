"""Work and cleanup end even if Ray no longer answers."""

import threading

import pytest

from imagemill.pipeline.cluster import contact as module
from imagemill.pipeline.cluster.connection import connected
from imagemill.pipeline.cluster.contact import Contact, ContactLost, clean_up, contact, wait_for_answer, while_answering


@pytest.fixture
def silent_contact(monkeypatch: pytest.MonkeyPatch) -> Contact:
    """Let Ray count as silent immediately."""
    new_contact = Contact()
    monkeypatch.setattr(module, "contact", new_contact)
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.05)
    return new_contact


def wait_forever() -> None:
    threading.Event().wait()


def test_contact_ends_work_that_ray_does_not_answer(silent_contact: Contact) -> None:
    """Without its control store, Ray's own calls never return."""
    with pytest.raises(ContactLost, match="has not answered"):
        while_answering(wait_forever)
    assert silent_contact.lost
    calls = []
    clean_up(lambda: calls.append(1))
    assert not calls


def test_contact_ends_one_question_without_answer(silent_contact: Contact) -> None:
    """In the main thread, a signal could not interrupt the request either."""
    with pytest.raises(ContactLost):
        wait_for_answer(wait_forever)
    assert silent_contact.lost


def test_contact_gives_what_work_gives_and_raises(silent_contact: Contact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 60.0)
    assert while_answering(lambda: 7) == wait_for_answer(lambda: 7) == 7
    for wait_for in (while_answering, wait_for_answer):
        with pytest.raises(KeyError):
            wait_for({}.popitem)
    clean_up({}.popitem)
    assert not silent_contact.lost


def test_contact_is_lost_by_cleaning_up_without_end(silent_contact: Contact) -> None:
    """Ray's shutdown may hang; the process ends without waiting for it."""
    clean_up(wait_forever, 0.05)
    assert silent_contact.lost


@pytest.mark.usefixtures("ray_session")
def test_contact_counts_from_work_not_from_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may list its input for hours before it needs Ray."""
    monkeypatch.setattr(contact, "_last", contact._last - 10_000)
    with connected(None):
        assert while_answering(lambda: 7) == 7
    monkeypatch.setattr(contact, "lost", True)
    with pytest.raises(ContactLost), connected(None):
        pass
