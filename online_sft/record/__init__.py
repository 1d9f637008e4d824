"""What a run leaves behind for people: its set-up, its metrics, and samples of what it trained on."""
