import os

# Before anything imports torch: two tests run at a time, and threads of both on each core wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
