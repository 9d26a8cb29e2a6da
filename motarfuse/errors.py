"""The errors a user can cause and mend; the command line prints them as one line, without a traceback."""


class MotarfuseError(Exception):
    """Base of every error that says what was got, what is supported and what to do."""


class ConfigError(MotarfuseError):
    """A configuration has an unknown key, a wrong type or values that contradict each other."""


class DataError(MotarfuseError):
    """A dataset, an image or a table of images cannot be used."""


class CheckpointError(MotarfuseError):
    """A checkpoint or a feature file is missing, truncated or of another model."""


class OutputError(MotarfuseError):
    """Results cannot be written: a full disk, a read-only folder, a file where a folder should be."""


class TrainingError(MotarfuseError):
    """Training cannot go on: a loss that is not finite, a batch that cannot be drawn."""
