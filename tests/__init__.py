import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes test at once: with two threads each they wait for one another, and take twice as long
