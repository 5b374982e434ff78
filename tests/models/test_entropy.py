"""The entropy coder returns exactly the encoded symbols, for all symbols and tables."""

import contextlib
import hashlib
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from imagemill.models import entropy
from imagemill.models.entropy import PASSES, PHASES, REACH, EntropyModel, PayloadError
from imagemill.models.entropy_fitting import fit_entropy_model, quantise_counts
from tests.support.entropy_tables import photo_like, tables

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
KINDS = (st.integers(-128, 127), st.integers(-2, 2), st.sampled_from([-128, 127]), st.just(0))


@given(st.data(), SHAPES, st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
@settings(max_examples=60)
def test_entropy_round_trip(
    data: st.DataObject, shape: tuple[int, int, int], seed: int, kind: st.SearchStrategy[int]
) -> None:
    symbols = data.draw(hnp.arrays(np.int8, shape, elements=kind))
    model = tables(shape[0], seed)
    decoded_symbols = model.decode(model.encode(symbols), shape)
    assert decoded_symbols.dtype == np.int8
    np.testing.assert_array_equal(decoded_symbols, symbols)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (9, 10), (12, 12)])
def test_entropy_round_trip_of_any_tile_size(monkeypatch: pytest.MonkeyPatch, height: int, width: int) -> None:
    monkeypatch.setattr(entropy, "TILE", 4)
    symbols = np.random.default_rng(1).integers(-9, 10, (3, height, width)).astype(np.int8)
    model = tables(3, 0)
    np.testing.assert_array_equal(model.decode(model.encode(symbols), symbols.shape), symbols)


def test_entropy_round_trip_of_strided_symbols() -> None:
    symbols = photo_like()[:, ::-1, 3:-2]
    model = tables(6, 0)
    np.testing.assert_array_equal(model.decode(model.encode(symbols), symbols.shape), symbols)


def test_fitted_tables_beat_channel_distributions() -> None:
    model = fit_entropy_model([photo_like(seed=n) for n in range(1, 60)])
    symbols = photo_like(seed=0)
    static = 0.0
    for plane in symbols:
        counts = np.unique(plane, return_counts=True)[1]
        static -= (counts * np.log2(counts / counts.sum())).sum()
    assert len(model.encode(symbols)) * 8 < static


@given(st.data(), SHAPES, st.sampled_from(KINDS))
@settings(max_examples=30)
def test_fitted_latents_can_be_coded(data: st.DataObject, shape: tuple[int, int, int], kind: st.SearchStrategy[int]) -> None:
    latents = data.draw(st.lists(hnp.arrays(np.int8, shape, elements=kind), min_size=1, max_size=3))
    model = fit_entropy_model(latents)
    for symbols in latents:
        np.testing.assert_array_equal(model.decode(model.encode(symbols), shape), symbols)


@pytest.mark.parametrize("channels", [14, pytest.param(30, marks=pytest.mark.chaos)])
def test_fit_to_few_symbols_stays_exact(channels: int) -> None:
    # With many unknowns, few positions and large symbols, unbounded least squares would exceed float32's exact integers.
    rng = np.random.default_rng(0)
    fit_entropy_model([rng.integers(-128, 128, (channels, 4, 4)).astype(np.int8)])
    flat_latent = np.repeat(rng.integers(-1, 2, (channels, 1, 1)), 16, 1).repeat(16, 2).astype(np.int8)
    flat_latent[:, 0, 0] = 127
    fit_entropy_model([flat_latent])


def test_zero_latent_has_a_small_payload() -> None:
    model = fit_entropy_model([photo_like(seed=n) for n in range(4)] + [np.zeros((6, 24, 24), np.int8)] * 30)
    assert len(model.encode(np.zeros((6, 24, 24), np.int8))) <= 40
    assert len(model.encode(np.zeros((6, 1, 1), np.int8))) <= 8


@given(st.data())
@settings(max_examples=60)
def test_damaged_payload_fails_or_changes_symbols(data: st.DataObject) -> None:
    symbols = photo_like()
    model = tables(6, 3)
    payload = bytearray(model.encode(symbols))
    if data.draw(st.booleans()):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del payload[data.draw(st.integers(0, len(payload) - 1)) :]
    try:
        decoded_symbols = model.decode(bytes(payload), symbols.shape)
    except PayloadError:
        return
    # Bits after the last symbol have no effect; a checksum of the symbols detects damage to all other bits.
    assert np.array_equal(decoded_symbols, symbols) or zlib.crc32(decoded_symbols.tobytes()) != zlib.crc32(symbols.tobytes())


@pytest.mark.parametrize("payload", [b"", b"abc", b"\0" * 4, b"\xff" * 400])
def test_decode_of_random_bytes_raises_payload_error(payload: bytes) -> None:
    with contextlib.suppress(PayloadError):
        tables(6, 3).decode(payload, (6, 24, 24))


def test_decode_refuses_another_channel_count() -> None:
    with pytest.raises(PayloadError, match="6 channels"):
        tables(6, 3).decode(b"\0" * 8, (5, 2, 2))


@pytest.mark.parametrize("name", ["sizes", "weights", "bias", "edges", "tables", "levels"])
def test_entropy_model_refuses_invalid_tables(name: str) -> None:
    state = dict(tables(2, 0).state_dict())
    for bad_table in (state[name].float(), state[name][..., :-1], torch.full_like(state[name], 2**15 - 1).int() * 2**10):
        with pytest.raises(ValueError, match=r"entropy\."):
            EntropyModel(**state | {name: bad_table})


def test_largest_sums_are_exact() -> None:
    # With random symbols and tables, float32 sums must equal integer sums.
    model = tables(4, 5)
    context = np.random.default_rng(0).integers(-128, 128, (2, 9 * 4, 500))
    weights = model._dense.transpose(0, 1, 3, 2, 4).reshape(2, len(PASSES) * 4, 36)
    exact_sums = weights.astype(np.int64) @ context
    assert np.array_equal(weights @ context.astype(np.float32), exact_sums)
    assert np.abs(exact_sums).max() > 2**20


CHILD = """
import hashlib, sys
import numpy as np, torch
torch.set_num_threads(int(sys.argv[1]))
sys.path.insert(0, sys.argv[2])
from tests.support.entropy_tables import photo_like, tables
model = tables(6, 3)
payload = model.encode(photo_like(side=96))
print(hashlib.sha256(payload).hexdigest(), hashlib.sha256(model.decode(payload, (6, 96, 96)).tobytes()).hexdigest())
"""


@pytest.mark.parametrize("threads", ["1", pytest.param("2", marks=pytest.mark.chaos)])
def test_payload_is_equal_in_processes_and_threads(threads: str) -> None:
    model, symbols = tables(6, 3), photo_like(side=96)
    digests = [hashlib.sha256(data).hexdigest() for data in (model.encode(symbols), symbols.tobytes())]
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    root = Path(entropy.__file__).parents[2]
    environment = os.environ | dict.fromkeys(variables, threads) | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", CHILD, threads, str(Path(__file__).parents[2])]
    child_digests = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert child_digests == digests


@pytest.mark.parametrize(
    ("levels", "payload"),
    [(0, "3de1f6fc3d40cb67a6dafbfc5b36c60679b23946"), (3, "eb54ecfc14a5d96085886e89ce76958b6099f1bb")],
    ids=["older", "levels"],
)
def test_payload_format_is_stable(levels: int, payload: str) -> None:
    """A coder that differs from constriction 0.5 would make all archives unreadable."""
    state = {name: value.numpy() for name, value in tables(2, 0, levels=levels).state_dict().items()}
    ramp = {name: (np.arange(v.size) * 37 % 113 - 20).astype(v.dtype) for name, v in state.items()}
    ramp["sizes"], ramp["edges"] = np.arange(129, dtype=np.int16), np.array([-500, 0, 500, 4000], np.int32)
    if levels:
        ramp["levels"] = np.array([0, 3] * 5, np.int16)
    count = len(state["tables"])
    rows = 1 + np.arange(count * 41).reshape(count, 41) * 31 % 101
    rows[:, REACH] += entropy.TOTAL - rows.sum(1)
    ramp["tables"] = rows.astype(np.int32).ravel()
    model = EntropyModel(**{name: torch.from_numpy(ramp[name].reshape(state[name].shape)) for name in state})
    symbols = (np.arange(2 * 6 * 5) * 7 % 11 * (np.arange(60) % 9 == 0) - 3 * (np.arange(60) == 17)).reshape(2, 6, 5)
    assert model.encode(symbols.astype(np.int8)).hex() == payload
    np.testing.assert_array_equal(model.decode(bytes.fromhex(payload), symbols.shape), symbols)


def test_tables_depend_on_the_largest_neighbour() -> None:
    """With weights of 0, only the largest neighbour tells where the symbols are not 0."""
    state = dict(tables(1, 0, levels=2).state_dict())
    state |= {name: torch.zeros_like(state[name]) for name in ("weights", "bias", "levels")}
    state["sizes"] = torch.arange(129, dtype=torch.int16)
    flat, peaked = np.ones(41), np.where(np.arange(41) == REACH, 1e6, 1)
    symbols = np.zeros((1, 32, 32), np.int8)
    symbols[0, 8:20, 8:20] = np.random.default_rng(0).integers(5, 15, (12, 12))

    def payload_size(*of_levels: np.ndarray) -> int:
        rows = quantise_counts(np.repeat(np.stack(of_levels), 2 * PHASES, 0))
        model = EntropyModel(**state | {"tables": torch.from_numpy(np.tile(rows, (len(state["edges"]) + 1, 1)))})
        payload = model.encode(symbols)
        np.testing.assert_array_equal(model.decode(payload, symbols.shape), symbols)
        return len(payload)

    assert payload_size(peaked, flat) < 0.7 * min(payload_size(flat, flat), payload_size(peaked, peaked))
    assert payload_size(flat, peaked) > payload_size(flat, flat)
