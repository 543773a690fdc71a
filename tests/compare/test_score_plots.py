"""Scores over parameters and time, and the calibration of detached models."""

import numpy as np
import pytest
from helpers.study_records import MODELS, record, study

from shadowpeft.compare import score_plots
from shadowpeft.compare.plot_style import plt
from shadowpeft.compare.results import Results


def results_of(tmp_path, *records, **changes) -> Results:
    return Results(study(tmp_path, **changes), records)


def lora(correct: str, **changes) -> dict:
    return record(MODELS[0], "clinc150", "lora", correct=correct, **changes)


def points_of(figure) -> list[list[float]]:
    """Return the markers of the only panel as pairs."""
    (axes,) = figure.axes
    plt.close(figure)
    return [[x, y] for line in axes.lines for x, y in line.get_xydata().tolist()]


def test_scores_stand_over_the_parameters_of_their_rank(tmp_path):
    """Catches ranks mixed up, a share drawn as it is beside percentages, and a curve of one rank."""
    small, large = lora("0011", rank=4), lora("0111", rank=16)
    figure = score_plots.parameters(results_of(tmp_path, small, large, ranks="4,16"))
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert points_of(figure) == [[4000, 50], [16000, 75], [4000, 50], [16000, 75]]
    assert labels == ["4 k", "8 k", "16 k"]
    assert score_plots.parameters(results_of(tmp_path, large)) is None


def test_scores_stand_over_the_seconds_of_their_training(tmp_path):
    """Catches detached models and the base in the picture, and times of two kinds that it does not tell."""
    alone = lora("", stage="cost", value=50.0, metric="train_ms_per_step", split="none")
    records = [lora("0111"), record(MODELS[0], "clinc150", "base", correct="0001")]
    records.append(record(MODELS[0], "clinc150", "shadow", mode="detached", correct="0001"))
    figure = score_plots.training_time(results_of(tmp_path, *records))
    assert "timed in the study" in figure._suptitle.get_text()
    assert points_of(figure)[0] == [40, 75]
    figure = score_plots.training_time(results_of(tmp_path, *records, alone))
    assert "timed alone" in figure._suptitle.get_text()
    assert points_of(figure)[0] == [15, 75]
    assert score_plots.training_time(results_of(tmp_path, *records[1:])) is None


def test_bins_of_confidence_are_pooled_over_seeds(tmp_path):
    """Catches seeds that count alike whatever their answers, and an empty bin drawn at 0."""
    bins = [[[1, 0.5, 0.0], [0, None, None], [2, 0.9, 0.5]], [[3, 0.7, 1.0], [0, None, None], [2, 0.8, 1.0]]]
    records = [
        record(
            MODELS[0], "clinc150", "shadow", mode="detached", seed=seed, correct="01",
            calibration={"ece": 0.1, "bins": table},
        )
        for seed, table in enumerate(bins)
    ]  # fmt: skip
    figure = score_plots.calibration(results_of(tmp_path, *records))
    assert "ECE, %: shadow\u00a010.0" in figure.axes[0].get_title().replace("\n", " ")
    assert np.array(points_of(figure)[2:]) == pytest.approx(np.array([[65, 75], [85, 75]]))
    attached = [{**each, "mode": "attached"} for each in records]
    assert score_plots.calibration(results_of(tmp_path, *attached)) is None
