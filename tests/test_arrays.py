"""Arrays that are kept in files."""

import numpy as np
import pytest

from salign.arrays import load_array, save_array


def test_an_array_comes_back_as_it_was(tmp_path):
    assert load_array(tmp_path / "a.npz") is None
    for array in (np.arange(12, dtype=np.float32).reshape(3, 4), np.empty(0), np.array([np.nan, -0.0])):
        save_array(tmp_path / "a.npz", array)
        found = load_array(tmp_path / "a.npz")
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert found.tobytes() == array.tobytes()


@pytest.mark.slow
def test_a_flipped_bit_anywhere_in_a_kept_array_is_noticed(tmp_path, caplog):
    """Or it changes nothing, as the time in the file's head."""
    path = tmp_path / "a.npz"
    array = np.arange(5, dtype=np.float32)
    save_array(path, array)
    content = path.read_bytes()
    noticed = 0
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            found = load_array(path)
            noticed += found is None
            assert found is None or (found.dtype == array.dtype and (found == array).all()), (place, bit)
    assert noticed > 0.7 * 8 * len(content)
    assert f"{path} is damaged" in caplog.text
    for end in range(len(content)):
        path.write_bytes(content[:end])
        assert load_array(path) is None
