"""20 Newsgroups."""

from helpers.task_rows import (
    SPLITS,
    everything,
    local_rows,
    write_sets,
)


def test_newsgroups_drops_empty_posts(tmp_path):
    rows = local_rows()["newsgroups20"]
    for split in ("train", "test"):
        rows[split].append({"text_stripped": " \n", "text": "From: me", "group": "sci.med"})
    items = everything("newsgroups20", write_sets(tmp_path, {"newsgroups20": rows}))
    assert sum(map(len, items.values())) == 120
    assert all(item.prompt for split in SPLITS for item in items[split])
