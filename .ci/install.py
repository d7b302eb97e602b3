"""Set up the environment of the Makefile; `make install` runs this.

This file alone must be readable for every Python, however old, so that an old one gets a sentence and not a
SyntaxError. What is done stands in the folder installer.
"""

import sys

if sys.version_info < (3, 10):
    sys.exit(
        "make install: this is Python %d.%d; 3.10 or newer is needed: make install PYTHON=python3.11, or whichever "
        "newer Python your system has" % sys.version_info[:2]
    )

from installer.main import main

if __name__ == "__main__":
    main()
