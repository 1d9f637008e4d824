"""What people see of a run: where its time goes, its record on disk, and the view in the terminal."""
