"""The command line, one file a verb: ``configure(parser)`` declares its arguments, ``run(args)`` returns the status."""
