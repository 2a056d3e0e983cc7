"""Reports on runs for people: a page, plots, tables and lines. All are made from the records alone."""

from cvt_nas.report.believing import beginning_lines, belief_lines, histories_of_beliefs
from cvt_nas.report.compare import Comparison, compare_page
from cvt_nas.report.fronts import front_figure
from cvt_nas.report.pictures import write_pictures
from cvt_nas.report.published import published_as
from cvt_nas.report.ranking import evaluation_plan_lines, next_lines, quality_lines, quality_verdict
from cvt_nas.report.run_page import run_page
from cvt_nas.report.stopping import hindsight_of, stopping_lines
from cvt_nas.report.tables import front_frame, summary, trials_frame
from cvt_nas.report.text import (
    accuracy_text,
    confirmation_lines,
    front_table,
    judged_lines,
    latency_lines,
    rank_lines,
    short,
)
from cvt_nas.report.write import report_paths, write_report
