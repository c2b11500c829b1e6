"""What all tests share: they run side by side, so each process keeps to one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("NANOCHAT_GCS_CHECKPOINT_BUCKET", None)  # tests bring their own bucket, if any
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
