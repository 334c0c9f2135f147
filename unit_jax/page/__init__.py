"""The page: a model's tasks in a browser, on this machine alone."""
