"""Pictures as data of a page."""

import base64

from matplotlib import pyplot as plt

from shadowpeft.reporting.pictures import as_data, new_axes


def test_a_picture_is_a_png_and_is_closed():
    """Catches figures that stay in memory, one for each picture of a report."""
    open_before = plt.get_fignums()
    figure, axes = new_axes()
    axes.plot([0, 1], [0, 1])
    data = as_data(figure)
    assert base64.b64decode(data.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert plt.get_fignums() == open_before
