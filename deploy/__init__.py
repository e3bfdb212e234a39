"""Starting the service: the launcher that runs all of it on one machine, and the demo."""
