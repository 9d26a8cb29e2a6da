"""Everything that needs a GPU, in one command: ``python -m tools.gpu_run``."""
