"""python -m lexlip.elastic, which scripts/launch.sh calls."""

import os
import sys

# What torch's C++ side prints of a lost connection, ten frames per attempt, the launcher tells in one line.
QUIET = "TORCH_CPP_LOG_LEVEL"

if __name__ == "__main__":
    asked = QUIET in os.environ
    os.environ.setdefault(QUIET, "FATAL")

    from lexlip.elastic.launcher import main  # torch reads the variable when it is imported

    if not asked:
        del os.environ[QUIET]  # not for the processes
    sys.exit(main(sys.argv[1:], os.environ))
