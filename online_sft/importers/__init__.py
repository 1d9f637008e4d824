"""Weighted data that people already have, as rows that the trainers read: `online-sft convert`."""
