"""Exports an architecture of a run to a folder that another tool can load."""

from cvt_nas.export.exporting import export
from cvt_nas.export.formats import FORMATS, Format
from cvt_nas.export.hub import check_repo_id, push
