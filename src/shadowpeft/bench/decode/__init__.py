"""How fast a model writes: `shadowpeft bench decode`.

`run` takes turns among methods (`methods`) that share one base's weights (`weights`), `ways` times one of
them in the way a user calls it, `check` compares what is timed with the reference, and `report` lays it out.
May import what `bench` may, and of `bench` what is not about training.
"""
