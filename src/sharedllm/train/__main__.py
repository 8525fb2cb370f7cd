"""`python -m sharedllm.train`, so that `accelerate launch -m sharedllm.train RECIPE` starts it in several processes."""

import sys

from sharedllm.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
