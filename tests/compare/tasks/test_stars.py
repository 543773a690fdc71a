"""Amazon reviews and SST."""

from shadowpeft.compare.tasks import find, stars


def test_stars_count_from_one_here_and_from_zero_on_the_hub(local, hub):
    """Catches classes off by one between training on the hub and testing on a folder."""
    for source in (local, hub):
        for name in ("amazon5", "sst5"):
            by_text = {
                item.prompt.removeprefix("Fine. "): item.target for item in find(name).load("test", source)
            }
            assert [by_text[f"test text number {index}"] for index in range(5)] == [0, 1, 2, 3, 4]
    assert stars.AMAZON_TASK.load("test", local)[0].prompt == "Fine. test text number 0"
