"""The work of each command as plain Python: inputs, method, output folder."""
