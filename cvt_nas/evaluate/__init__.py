"""Evaluation of any trained network on test images, and its predictions for other images."""

from cvt_nas.evaluate.accuracy import Evaluation, evaluate_model
from cvt_nas.evaluate.predicting import Predictions, predict
