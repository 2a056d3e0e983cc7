"""What a trained network, whatever trained it, is worth on test images, and what it says of others."""

from cvt_nas.evaluate.accuracy import Evaluation, evaluate_model
from cvt_nas.evaluate.predicting import Predictions, predict
