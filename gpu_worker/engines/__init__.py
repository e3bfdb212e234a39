"""The engines: what turns a job into pixels. Each is imported in the engine process only."""
