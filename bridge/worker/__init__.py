"""The child process: one io thread, an executor, DSPy programs. The only package that imports dspy."""
