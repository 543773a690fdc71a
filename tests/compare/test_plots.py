"""The pictures of a study."""

from helpers.study_records import study, study_records

from shadowpeft.compare import plots


def test_long_names_stay_in_their_pictures(tmp_path, monkeypatch):
    """Catches titles and labels that reach out of the picture or into each other."""
    models = tuple(
        f"models/a-language-model-of-a-{size}-name-and-of-many-billions-of-parameters-instruct"
        for size in ("long", "longer")
    )
    plan, kept = study(tmp_path, model=",".join(models), ranks="4,16"), []
    monkeypatch.setattr(plots.plt, "close", kept.append)
    drawn = plots.draw(plan, study_records(models=models, ranks=(4, 16)), tmp_path)
    assert [path.name for path in drawn] == [
        "differences.png",
        "parameters.png",
        "training_time.png",
        "calibration.png",
    ]
    for figure in kept:
        figure.draw_without_rendering()  # in the size that it is measured in, not that of the file
        places = figure.axes[0].get_yticklabels() if figure is kept[0] else []
        texts = [figure._suptitle, *(axes.title for axes in figure.axes), *places]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes), (
            figure._suptitle.get_text()
        )
        assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes), (
            figure._suptitle.get_text()
        )
        assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])
