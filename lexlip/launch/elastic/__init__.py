"""The launcher behind scripts/launch.sh: torch's elastic agent, with messages that say what to do.

    python -m lexlip.launch.elastic [--max-restarts N] Phase1 with key=value ...

`settings` reads the environment, `network` looks whether the nodes can reach each other, `agent` starts the processes
and starts them again when one dies.
"""
