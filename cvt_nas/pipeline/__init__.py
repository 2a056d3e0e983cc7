"""One search from beginning to end, and what is asked of it afterwards."""

from cvt_nas.pipeline.phases import open_study
from cvt_nas.pipeline.query import query
from cvt_nas.pipeline.searching import search
from cvt_nas.pipeline.verdict import evaluate_supernet
