"""What happens beside a step: checkpoints, signals, throughput."""
