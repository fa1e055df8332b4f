"""The proxy itself. The way of one request is the reading order: docs/architecture.md."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 (said before anything is loaded that an older one cannot read)
    sys.exit("Python 3.10 or later is needed, and this is " + sys.version.split()[0])
