"""The command line: parse, build, run, save. One module per subcommand."""
