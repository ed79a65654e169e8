"""Models: weights, vision encoders, projectors, language models, and those of transformers."""

import logging

# At its import, which PEFT causes wherever it is installed, it complains of a package that only speeds it up.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
