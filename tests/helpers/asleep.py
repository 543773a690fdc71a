"""Torch's threads sleep while they wait, as under the command line: import this before torch.

Several workers share the cores. Threads that spin would push each other's tests over their time limit.
"""

from shadowpeft.cli._threads import sleep_while_waiting

sleep_while_waiting()
