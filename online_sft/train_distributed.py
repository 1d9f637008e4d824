"""Another name of `online_sft.train`, which runs on any number of processes."""

from online_sft.train import main

if __name__ == "__main__":
    main()
