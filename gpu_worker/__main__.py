"""`python -m gpu_worker`: one GPU, one job at a time.

The engine process imports this module again when it starts: nothing is imported here before it is needed.
"""

if __name__ == "__main__":
    from gpu_worker.process import main

    raise SystemExit(main())
