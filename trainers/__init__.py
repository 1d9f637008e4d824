"""Thin Hugging Face / TRL adapters over `online_sft`. Import them from there: `from online_sft import OnlineSFTTrainer`."""
