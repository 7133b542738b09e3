"""`python -m mmjax` is `python -m mmjax.main`."""

import sys

from mmjax.main import main

sys.exit(main())
