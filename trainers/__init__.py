"""Thin Hugging Face / TRL adapters. Import them from `online_sft`: `from online_sft import OnlineSFTTrainer`."""
