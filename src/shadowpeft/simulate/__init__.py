"""The system whole, as a simulation of events: robots with an edge each, a network and a cloud.

`run.simulate` replays answered rows through it; `settings.System` says how large everything is, how fast, how
dear and how often away. `answers` holds the rows, `strategies` who answers what, `arrivals` what chance
decides, `fleet` and `cloud` the queues, `measures` the figures, `settling` whether there
were enough requests for them, `report` and `plots` the pages.

May import `route`, whose policy it follows, `reporting`, `storage.atomic`, and of `serve` how patient the
gateway is. No torch.
"""
