"""The pictures of a study, as files: of those it has the data for."""

from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib.figure import Figure

from shadowpeft.compare.forest_plot import differences
from shadowpeft.compare.plot_style import plt, study_style
from shadowpeft.compare.records import Record
from shadowpeft.compare.results import Results
from shadowpeft.compare.score_plots import calibration, parameters, training_time
from shadowpeft.compare.study import Study
from shadowpeft.storage import atomic

_PICTURES: dict[str, Callable[[Results], Figure | None]] = {
    "differences.png": differences,
    "parameters.png": parameters,
    "training_time.png": training_time,
    "calibration.png": calibration,
}


def draw(study: Study, records: Iterable[Record], folder: str | Path) -> list[Path]:
    """Draw what the records so far allow, as PNG files in a folder.

    Args:
        study: the study.
        records: its records so far.
        folder: where to write `differences.png`, `parameters.png`, `training_time.png` and `calibration.png`.

    Returns:
        The files that were drawn: there are no differences without LoRA, no scaling with one rank, no
        calibration without a detached classifier.

    Raises:
        DataError: records that should be comparable are of different items.
        CheckpointError: a file cannot be written.
    """
    results = Results(study, records)
    with study_style():
        figures = {name: figure for name, make in _PICTURES.items() if (figure := make(results)) is not None}
        atomic.write_together(Path(folder), {name: _saver(figure) for name, figure in figures.items()})
        for figure in figures.values():
            plt.close(figure)
    return [Path(folder) / name for name in figures]


def _saver(figure: Figure) -> Callable[[Path], object]:
    return lambda path: figure.savefig(path, format="png")
