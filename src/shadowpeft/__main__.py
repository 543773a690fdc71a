"""`python -m shadowpeft` is `shadowpeft`."""

import sys

from shadowpeft.cli import main

sys.exit(main())
