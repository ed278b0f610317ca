"""python -m lexlip.launch.elastic, which scripts/launch.sh calls."""

import logging
import os
import sys

# What torch says of a process that died and of a lost connection, some with ten frames, the launcher tells in one line.
QUIET = {"TORCH_CPP_LOG_LEVEL": "FATAL", "LOGLEVEL": "CRITICAL"}

if __name__ == "__main__":
    own = {name: level for name, level in QUIET.items() if name not in os.environ}
    os.environ.update(own)

    from lexlip.launch.elastic.launcher import main  # torch reads the variables when it is imported

    for name in own:
        del os.environ[name]  # not for the processes
    if "LOGLEVEL" in own and "TORCH_LOGS" not in os.environ:
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    code = main(sys.argv[1:], os.environ)
    sys.stderr.flush()
    os._exit(code)  # torch's heartbeat thread, which may hang on a lost link, would be waited for
