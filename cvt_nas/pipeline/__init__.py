"""Runs a search from beginning to end, and answers queries about it afterwards."""

from cvt_nas.pipeline.phases import open_study
from cvt_nas.pipeline.query import query
from cvt_nas.pipeline.searching import search
from cvt_nas.pipeline.verdict import evaluate_supernet
