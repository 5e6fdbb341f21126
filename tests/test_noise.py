"""Noise is the same everywhere: published values and hashes, and a float64 computation by another route."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from mdrt import _core

FIRST = {
    (0, 0): [-0.92466259, -0.425344139, -2.6438458, 0.145183876, -0.120866477, -0.579725623],
    (0, 1): [0.180825904, -0.552262783, 0.923813403, -0.73497057, 1.37999463, 0.867630661],
    (42, 0): [0.19401896, 2.16137385, -0.172050834, 0.849060178, -1.92439914, 0.652985334],
    (42, 1): [0.139137492, -0.108216509, -0.717422307, 0.75664866, 0.371488243, -1.00494134],
    (4294967301, 0): [-2.84274721, 1.34049237, 0.272230923, 1.45506287, -0.735296011, -0.502260387],
    (4294967301, 1): [1.52959394, -0.215323776, 0.051255133, 1.58821726, -0.946536422, 0.845452964],
}

# SHA-256 of the first 16,384 values of tensor 0 as little-endian float32.
HASHES = {
    0: "12a78bcc8f3321a435f7f35f940e262f2e8d16f65cf18be12b5a0c9fe0d2375b",
    1: "5a0976c66fc555ee925ac234e89bd5b4599d11ae1a9661b562419633fe8cedac",
    42: "df3f09b8a057eddef2d69bbca4c1611a6a1bbc7125ccfa3a2aeacd307b9b1009",
    4294967301: "ff8844559656240a896fcd8b85061336a98324bbc6c207d0fed47f55fae4074b",
    18446744073709551615: "dba9c6026e2d889283c22fa6fb945ea43b92adb48fc93e3874dc7c930584872b",
}


def philox_normal(seed: int, offset: int, count: int) -> NDArray[np.float64]:
    """Philox 4x32-10 and Box-Muller with NumPy's logarithm and sine, unrounded."""
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    c0 = np.full(count, offset, np.uint64)
    c1 = np.zeros(count, np.uint64)
    c2 = np.arange(count, dtype=np.uint64)
    c3 = np.zeros(count, np.uint64)
    k0, k1 = seed % 2**32, seed // 2**32
    for _ in range(10):
        p, r = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (r >> shift) ^ c1 ^ np.uint64(k0), r & low
        c2, c3 = (p >> shift) ^ c3 ^ np.uint64(k1), p & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    u = c0.astype(np.float64) * 2.0**-32 + 2.0**-33
    v = (c1.astype(np.float64) * 2.0**-32 + 2.0**-33) * (2 * np.pi)
    return np.sqrt(-2 * np.log(u)) * np.sin(v)


@pytest.mark.parametrize(("seed", "offset"), FIRST)
def test_first_values(seed: int, offset: int) -> None:
    values = _core.philox_normal(seed, offset, 6)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.array(FIRST[seed, offset], np.float32))


@pytest.mark.parametrize("seed", HASHES)
def test_hashes(seed: int) -> None:
    assert hashlib.sha256(_core.philox_normal(seed, 0, 16384).astype("<f4").tobytes()).hexdigest() == HASHES[seed]


@pytest.mark.parametrize("seed", HASHES)
@pytest.mark.parametrize("offset", [0, 7, 2**32 - 1])
def test_within_one_ulp_of_numpy(seed: int, offset: int) -> None:
    values = _core.philox_normal(seed, offset, 50_000)
    want = philox_normal(seed, offset, 50_000)
    assert np.all(np.abs(values - want) <= np.spacing(np.abs(want).astype(np.float32)))


def test_prefix_does_not_depend_on_the_count() -> None:
    np.testing.assert_array_equal(_core.philox_normal(3, 1, 1000)[:77], _core.philox_normal(3, 1, 77))
    assert _core.philox_normal(3, 1, 0).shape == (0,)


def test_moments() -> None:
    values = _core.philox_normal(11, 0, 1_000_000).astype(np.float64)
    assert abs(values.mean()) < 5e-3
    assert abs(values.std() - 1) < 5e-3
