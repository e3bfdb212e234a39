"""`python -m gpu_worker`: a worker, or a command such as `prefetch`.

The engine process imports this module again when it starts: nothing is imported here before it is needed.
"""

if __name__ == "__main__":
    from gpu_worker.commands import main

    raise SystemExit(main())
