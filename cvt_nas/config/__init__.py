"""The space file: a YAML file that describes one experiment, as frozen values.

A scalar is fixed, and a list is a choice. All problems of a file are reported at once, each as
`file:line: key: got ..., must be ...`.
"""

from cvt_nas.config.experiment import MAY_CHANGE, Experiment, load_experiment, load_recipe, parse_experiment
from cvt_nas.config.of_run import experiment_of, space_file_of, with_table_of
from cvt_nas.config.sections import (
    AugmentConfig,
    ConfirmConfig,
    DaNasConfig,
    DataConfig,
    Dataset,
    SupernetConfig,
    TrainingConfig,
    can_be_named,
    is_by_name,
    is_streamed,
)
