"""What a training's end tells the launcher and SLURM."""

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: a checkpoint is written, start me again
INTERRUPTED = 130  # what shells give for Ctrl-C
USAGE = 2  # a mistake of the user's, which a restart does not mend
