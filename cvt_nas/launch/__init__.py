"""Runs trials with Ray. Ray only executes; this package's own record and rungs decide.

Nothing else in the package imports Ray.
"""

import os

# Ray reads these when it is imported or started. Users can override each of them.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, the only way to silence Tune
    "RAY_memory_monitor_refresh_ms": "0",  # a kill by Ray's memory monitor would abort the whole search
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU must not see every GPU
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's snapshots are not needed, since the journal is the record
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",  # an orderly stop does not wait for a long epoch, since there is a checkpoint
}.items():
    os.environ.setdefault(_name, _value)
