"""The circuit breaker."""

from shadowpeft.serve.breaker import Breaker


def test_one_request_in_a_while_tries_whether_the_server_is_back():
    """Catches a herd that falls on a server that is just back, and a breaker that stays open for ever."""
    now = [0.0]
    breaker = Breaker(2, 10, clock=lambda: now[0])
    for _ in range(2):
        assert breaker.lets_in()
        breaker.failed()
    assert breaker.is_open
    assert not breaker.lets_in()
    now[0] = 10
    assert [breaker.lets_in(), breaker.lets_in()] == [True, False]
    breaker.abandoned()
    assert [breaker.lets_in(), breaker.lets_in()] == [True, False]
    breaker.failed()
    assert not breaker.lets_in()
    now[0] = 20
    assert breaker.lets_in()
    breaker.succeeded()
    assert not breaker.is_open


def test_only_failures_in_a_row_count():
    breaker = Breaker(2, 10)
    for _ in range(5):
        breaker.failed()
        breaker.succeeded()
    assert breaker.lets_in()
