"""Set up the environment of the Makefile; `make install` runs this.

The steps are in the folder installer. Every Python, however old, must be able to parse this file, so that an old one
prints a message instead of a SyntaxError.
"""

import sys

if sys.version_info < (3, 10):
    sys.exit(
        "make install: this is Python %d.%d; 3.10 or newer is needed: make install PYTHON=python3.11, or another "
        "newer Python of your system" % sys.version_info[:2]
    )

from installer.main import main

if __name__ == "__main__":
    main()
