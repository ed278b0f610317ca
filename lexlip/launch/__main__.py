"""python -m lexlip.launch, which scripts/launch.sh calls."""

import logging
import os
import sys

from lexlip_data.command import run_command


def main() -> int:
    """Launch what the command line says; returns the exit status."""
    # What torch says of a process that died and of a lost connection, some of it with ten frames, the launcher says in
    # one line. torch reads the variable when it is imported; the processes shall not inherit it.
    inherited = "TORCH_CPP_LOG_LEVEL" in os.environ
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from lexlip.launch import launcher

    if not inherited:
        del os.environ["TORCH_CPP_LOG_LEVEL"]
    if not {"LOGLEVEL", "TORCH_LOGS"} & os.environ.keys():
        logging.disable()
    return launcher.main(sys.argv[1:], os.environ)


if __name__ == "__main__":
    code = run_command(main)
    os._exit(code)  # torch's heartbeat thread, which may hang on a lost link, would be waited for
