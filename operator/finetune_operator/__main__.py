"""`python -m finetune_operator`."""

import gc

# What is imported lives as long as the process: to look for garbage among it costs a tenth of the start, and later on
# a part of every collection.
gc.disable()
from finetune_operator.main import main  # noqa: E402

gc.freeze()
gc.enable()
main()
