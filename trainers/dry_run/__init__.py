"""What `--dry_run` prints instead of training."""
