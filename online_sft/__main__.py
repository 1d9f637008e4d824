"""`python -m online_sft` and `accelerate launch -m online_sft` are the `online-sft` command."""

from online_sft.cli import main

if __name__ == "__main__":
    main()
