"""Hidden shapes: what a W is, and that adding it changes the covariance by one rank-one term."""

import pytest
import torch

from locality.shapes import add_shape, drawing, letter_w


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (24, 40)])
def test_a_w_is_a_connected_line_with_four_strokes(size):
    shape = letter_w(*size)
    assert shape.shape == size and set(shape.unique().tolist()) == {0.0, 1.0}
    rows = shape.sum(1).nonzero().flatten()
    middle = shape[(rows[0] + 3 * rows[-1]) // 4]  # below the inner peak, above the valleys
    strokes = (middle[1:] > middle[:-1]).sum()
    assert strokes == 4
    assert 0.02 < shape.mean() < 0.2


def test_a_drawing_is_read_as_it_looks():
    shape = drawing("""
        ..#
        #.#
    """)
    assert shape.tolist() == [[0, 0, 1], [1, 0, 1]] and shape.dtype == torch.float32
    letter = letter_w(12, 14)
    text = "\n".join("".join("#" if pixel else "." for pixel in row) for row in letter.tolist())
    assert torch.equal(drawing(text), letter)
    for wrong in ("..#\n#", "...\n...", ""):
        with pytest.raises(ValueError, match="rows of one length and some '#'"):
            drawing(wrong)


def test_the_covariance_gains_the_outer_product_of_the_shape():
    shape = letter_w(12, 12)
    images = torch.zeros(20_000, 1, 12, 12)
    flat = add_shape(images, shape, deviation=0.5).flatten(1)
    expected = 0.25 * torch.outer(shape.flatten(), shape.flatten())
    torch.testing.assert_close(torch.cov(flat.T), expected, atol=0.01, rtol=0)
    assert flat.mean().abs() < 0.01


def test_a_seed_fixes_the_strengths():
    images, shape = torch.zeros(5, 3, 12, 12), letter_w(12, 12)
    first, again, other = (add_shape(images, shape, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first[:, 0], first[:, 2])  # all channels alike


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match=r"\(28, 28\).*got \(12, 12\)"):
        add_shape(torch.zeros(2, 1, 28, 28), letter_w(12, 12))
    with pytest.raises(ValueError, match="got 9 x 12"):
        letter_w(9, 12)
