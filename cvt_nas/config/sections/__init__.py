"""The sections of the space file: what each setting means, its values and its default."""

from cvt_nas.config.sections.data import DataConfig, Dataset, can_be_named, has_columns, is_by_name, is_streamed
from cvt_nas.config.sections.deploy import DeployConfig
from cvt_nas.config.sections.file import SpaceFile
from cvt_nas.config.sections.search import ConfirmConfig, SearchConfig
from cvt_nas.config.sections.space import ConstraintsSection, ObjectivesSection, SpaceSection
from cvt_nas.config.sections.supernet import DaNasConfig, SupernetConfig
from cvt_nas.config.sections.training import AugmentConfig, TrainingConfig
