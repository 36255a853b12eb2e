"""The trainer: what runs inside the pods of a FineTuneJob."""

import logging

# Its advice to install another package comes at every import, and PEFT imports it for every method. Errors are heard.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
